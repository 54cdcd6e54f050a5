//! The last operators of a cookie as bytes; their type is that of the kernel side.

use borsh::{
    BorshDeserialize as _, BorshSerialize as _,
    io::{Read, Result, Write},
};
use dmtrace_common::{OPERATORS, Operator, Operators};

pub(super) fn write_operators(operators: &Operators, writer: &mut impl Write) -> Result<()> {
    let places = operators.places.map(|it| (it.ended, it.span, it.tgid));
    places.serialize(writer)
}

pub(super) fn read_operators(reader: &mut impl Read) -> Result<Operators> {
    let places = <[(u64, u32, u32); OPERATORS]>::deserialize_reader(reader)?;
    Ok(Operators {
        places: places.map(|(ended, span, tgid)| Operator { ended, span, tgid }),
    })
}
