//! The envelope of every JSON object.

use serde::Serialize;
use serde_json::{Map, Value, json};

/// Version of all JSON output. The minor part grows when fields are added; readers ignore fields
/// that they do not know. The major part grows when a field changes or goes.
///
/// 2.0: the backend `trampoline` is called `fentry`, as on the command line.
pub(crate) const SCHEMA_VERSION: &str = "2.0";

/// An object with `schema_version` and `type`, and the fields of `body`.
pub(crate) fn json_envelope(kind: &str, body: &impl Serialize) -> Value {
    let mut object = Map::new();
    object.insert("schema_version".into(), json!(SCHEMA_VERSION));
    object.insert("type".into(), json!(kind));
    match serde_json::to_value(body) {
        Ok(Value::Object(fields)) => object.extend(fields),
        Ok(other) => {
            object.insert("value".into(), other);
        }
        // The types here have no maps with keys that are no strings, the only cause.
        Err(error) => {
            object.insert("error".into(), json!(error.to_string()));
        }
    }
    Value::Object(object)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_envelope_comes_first_and_the_fields_stay() {
        let text = json_envelope("thing", &json!({"b": 1})).to_string();
        let value: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(value["schema_version"], SCHEMA_VERSION);
        assert_eq!(value["type"], "thing");
        assert_eq!(value["b"], 1);
    }
}
