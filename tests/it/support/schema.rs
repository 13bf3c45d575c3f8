//! Validates the output of `--json` by its schema in docs/schema.

use std::path::{Path, PathBuf};

use boon::{Compiler, Schemas};
use serde_json::Value;

fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs")
}

/// Validates a value by the schema in a file below docs.
#[track_caller]
pub fn validate(file: &str, value: &Value) {
    let (mut schemas, mut compiler) = (Schemas::new(), Compiler::new());
    let path = docs().join(file);
    let schema = compiler.compile(path.to_str().unwrap(), &mut schemas);
    let schema = schema.unwrap_or_else(|error| panic!("{file}: {error:#}"));
    if let Err(error) = schemas.validate(value, schema) {
        panic!("{file}: {error:#}\n{value:#}");
    }
}

/// Reads the single object that a run printed, by the schema with this name, such as `ls/1`.
#[track_caller]
pub fn object(schema: &str, stdout: &[u8]) -> Value {
    let shown = String::from_utf8_lossy(stdout);
    let value: Value = serde_json::from_slice(stdout)
        .unwrap_or_else(|error| panic!("not one object: {error}: {shown:?}"));
    assert_eq!(value["schema"], schema, "{value:#}");
    let (name, _) = schema.split_once('/').unwrap();
    let file = format!("schema/{name}.schema.json");
    validate(&file, &value);
    // Each key that is printed must also be documented, and not only allowed by the schema.
    let text = std::fs::read_to_string(docs().join(&file)).unwrap();
    let known: Value = serde_json::from_str(&text).unwrap();
    for key in value.as_object().unwrap().keys() {
        let is_known = known["properties"].get(key).is_some();
        assert!(is_known, "{file} does not tell of {key:?}");
    }
    value
}
