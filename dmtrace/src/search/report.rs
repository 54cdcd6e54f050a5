//! What a worker is asked, and what it says.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Read, Write},
};

use dmtrace_core::{
    ids::{Key, ProcId},
    search::{Form, HolderClass, HolderTrait, Place, Spot, UnsearchedReason},
};
use serde::{Deserialize, Serialize};

/// How the work on one process ended.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub(super) enum Ending {
    /// It was searched.
    Searched,
    /// It can do nothing with a number, or what is in it is not its own.
    Powerless,
    /// It has gone, or is a part of the kernel.
    #[default]
    Nobody,
}

/// What was found out about one process, or in the files.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Report {
    pub ending: Ending,
    pub id: Option<ProcId>,
    pub comm: String,
    pub exe: String,
    pub class: Option<HolderClass>,
    pub traits: BTreeSet<HolderTrait>,
    pub problems: Vec<UnsearchedReason>,
    /// Swapped memory that was left where it is.
    pub swapped: u64,
    pub files: Vec<(Key, String)>,
    /// Whether all files were searched,
    pub files_done: bool,
    /// and why not.
    pub files_failed: Option<String>,
    /// They go apart: there may be many.
    #[serde(skip)]
    pub found: Found,
}

/// How often which number was where in which form.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Found {
    counts: BTreeMap<(Key, Form, Place), u32>,
}

impl Found {
    pub(super) fn add(&mut self, key: Key, form: Form, place: Place) {
        let count = self.counts.entry((key, form, place)).or_default();
        *count = count.saturating_add(1);
    }

    pub(super) fn into_spots(self) -> impl Iterator<Item = (Key, Spot)> {
        self.counts
            .into_iter()
            .map(|((key, form, place), count)| (key, Spot { form, place, count }))
    }
}

/// A message is no longer than that: 65,536 numbers in all forms and places are less.
const MESSAGE_MAX: u32 = 64 << 20;

const SPOT_BYTES: usize = 10;

/// Sends a report: both lengths, the text, then the spots.
pub(super) fn send_report(to: &mut impl Write, report: &Report) -> io::Result<()> {
    let text = serde_json::to_vec(report)?;
    let spots: Vec<u8> = report
        .found
        .counts
        .iter()
        .flat_map(|((key, form, place), count)| {
            let mut bytes = [0; SPOT_BYTES];
            bytes[..4].copy_from_slice(&key.0.to_le_bytes());
            bytes[4] = *form as u8;
            bytes[5] = *place as u8;
            bytes[6..].copy_from_slice(&count.to_le_bytes());
            bytes
        })
        .collect();
    for part in [&text, &spots] {
        let length = u32::try_from(part.len()).map_err(io::Error::other)?;
        to.write_all(&length.to_le_bytes())?;
    }
    to.write_all(&text)?;
    to.write_all(&spots)
}

/// Receives a report.
pub(super) fn receive_report(from: &mut impl Read) -> io::Result<Report> {
    let mut length = || -> io::Result<u32> {
        let mut bytes = [0; 4];
        from.read_exact(&mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    };
    let lengths = [length()?, length()?];
    if lengths.iter().any(|it| *it > MESSAGE_MAX) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut part = |length: u32| -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length as usize];
        from.read_exact(&mut bytes)?;
        Ok(bytes)
    };
    let mut report: Report = serde_json::from_slice(&part(lengths[0])?)?;
    for spot in part(lengths[1])?.as_chunks::<SPOT_BYTES>().0 {
        let number = |at: usize| {
            let bytes = spot.get(at..).and_then(|it| it.first_chunk());
            bytes.map_or(0, |it| u32::from_le_bytes(*it))
        };
        let form = Form::ALL.get(usize::from(spot[4]));
        let place = Place::ALL.get(usize::from(spot[5]));
        if let (Some(&form), Some(&place)) = (form, place) {
            let spot = (Key(number(0)), form, place);
            report.found.counts.insert(spot, number(6));
        }
    }
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_is_received() {
        let mut report = Report {
            comm: "c".to_owned(),
            ..Report::default()
        };
        for form in Form::ALL {
            for place in Place::ALL {
                report.found.add(Key(0x0d4d_0001), form, place);
                report.found.add(Key(0x0d4d_ffff), form, place);
            }
        }
        let mut bytes = Vec::new();
        send_report(&mut bytes, &report).unwrap();
        let back = receive_report(&mut &bytes[..]).unwrap();
        assert_eq!((back.comm, back.found), (report.comm, report.found));
        assert!(receive_report(&mut &bytes[..bytes.len() - 1]).is_err());
        assert!(receive_report(&mut &[255; 64][..]).is_err());
    }
}
