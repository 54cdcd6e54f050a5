//! Reading what others have written.

use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use serde_json::Value;

/// A field as it is, or as one that is not known.
pub(crate) fn lenient<'de, D: Deserializer<'de>, T: DeserializeOwned + Default>(
    from: D,
) -> Result<T, D::Error> {
    Value::deserialize(from).map(value_or_default)
}

/// A list without what cannot be read of it.
pub(crate) fn lenient_list<'de, D: Deserializer<'de>, T: DeserializeOwned>(
    from: D,
) -> Result<Vec<T>, D::Error> {
    Value::deserialize(from).map(readable_elements)
}

/// Apart from where it comes from, so that each type has this code once.
#[inline(never)]
fn value_or_default<T: DeserializeOwned + Default>(value: Value) -> T {
    serde_json::from_value(value).unwrap_or_default()
}

/// As above.
#[inline(never)]
fn readable_elements<T: DeserializeOwned>(list: Value) -> Vec<T> {
    let Value::Array(values) = list else {
        return Vec::new();
    };
    let read = values.into_iter().map(serde_json::from_value);
    read.filter_map(Result::ok).collect()
}

/// A key as people write it.
pub(super) mod key {
    use dmtrace_core::ids::Key;
    use serde::{Deserializer, Serializer};

    pub(in crate::finding) fn serialize<S: Serializer>(
        key: &Key,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.collect_str(key)
    }

    pub(in crate::finding) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Key, D::Error> {
        let text: String = super::lenient(from)?;
        let digits = text.strip_prefix("0x").unwrap_or_default();
        Ok(Key(u32::from_str_radix(digits, 16).unwrap_or_default()))
    }
}
