//! The chart as Helm renders it, with the functions that the chart uses and no others: a template
//! that names another one is an error here.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use gtmpl::{Context, Func, FuncError, Template, Value};
use pintle_tests::tools;
use serde_json::{Map, Value as Json, json};

/// Sprig's and Helm's, each as its documentation says.
const FUNCTIONS: [(&str, Func); 8] = [
    ("toYaml", to_yaml),
    ("toJson", to_json),
    ("nindent", nindent),
    ("quote", quote),
    ("int64", int64),
    ("omit", omit),
    ("hasKey", has_key),
    ("adler32sum", adler32sum),
];

pub fn directory() -> PathBuf {
    tools::root().join("envoy/helm/pintle")
}

/// The chart's own values with `changes` laid over them; null takes a key away.
pub fn values(changes: &Json) -> Json {
    let mut values = yaml(&directory().join("values.yaml"));
    merge(&mut values, changes);
    values
}

/// What one file of the templates becomes for a release `agent` in the namespace `pintle`.
pub fn render(file: &str, values: &Json) -> String {
    let chart = yaml(&directory().join("Chart.yaml"));
    let root = json!({
        "Values": values,
        "Release": {"Name": "agent", "Namespace": "pintle"},
        "Chart": {"Name": chart["name"], "AppVersion": chart["appVersion"]},
    });
    let mut template = Template::default();
    template.add_funcs(&FUNCTIONS);
    let text = [read(&templates().join("_agent.tpl")), read(&templates().join(file))].concat();
    template.parse(text).unwrap_or_else(|error| panic!("{file}: {error}"));
    let text = template.render(&Context::from(of_json(&root)));
    text.unwrap_or_else(|error| panic!("{file}: {error}")).trim_start().to_owned()
}

/// All objects of a release with these changes.
pub fn objects(changes: &Json) -> Vec<Json> {
    let values = values(changes);
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(templates()).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|it| it == "yaml"));
    files.sort();
    let name = |file: &PathBuf| file.file_name().unwrap().to_str().unwrap().to_owned();
    let rendered: Vec<String> = files.iter().map(|file| render(&name(file), &values)).collect();
    parsed(&rendered.join("\n---\n"))
}

/// The objects of a file.
pub fn parsed(text: &str) -> Vec<Json> {
    let documents = text.split("\n---\n").filter(|text| !text.trim().is_empty());
    let object = |text: &str| {
        serde_yaml_ng::from_str(text).unwrap_or_else(|error| panic!("{error}:\n{text}"))
    };
    documents.map(object).filter(|object: &Json| !object.is_null()).collect()
}

fn templates() -> PathBuf {
    directory().join("templates")
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn yaml(path: &Path) -> Json {
    serde_yaml_ng::from_str(&read(path)).unwrap()
}

fn merge(into: &mut Json, changes: &Json) {
    let (Json::Object(fields), Json::Object(changes)) = (&mut *into, changes) else {
        *into = changes.clone();
        return;
    };
    for (key, change) in changes {
        match change {
            Json::Null => drop(fields.remove(key)),
            _ => merge(fields.entry(key).or_insert(Json::Null), change),
        }
    }
}

fn of_json(json: &Json) -> Value {
    match json {
        Json::Null => Value::Nil,
        Json::Bool(flag) => Value::from(*flag),
        Json::Number(number) => Value::from(number.as_i64().expect("whole numbers")),
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(list) => Value::Array(list.iter().map(of_json).collect()),
        Json::Object(fields) => {
            let fields: HashMap<String, Value> =
                fields.iter().map(|(key, value)| (key.clone(), of_json(value))).collect();
            Value::Map(fields)
        }
    }
}

fn json_of(value: &Value) -> Json {
    match value {
        Value::Bool(flag) => json!(flag),
        Value::Number(number) => json!(number.as_i64()),
        Value::String(text) => json!(text),
        Value::Array(list) => list.iter().map(json_of).collect(),
        Value::Map(fields) | Value::Object(fields) => {
            Json::Object(fields.iter().map(|(key, value)| (key.clone(), json_of(value))).collect())
        }
        _ => Json::Null,
    }
}

fn text(value: &Value) -> Result<&str, FuncError> {
    match value {
        Value::String(text) => Ok(text),
        other => Err(FuncError::Generic(format!("{other} is no text"))),
    }
}

fn exactly<const N: usize>(arguments: &[Value]) -> Result<&[Value; N], FuncError> {
    arguments.try_into().map_err(|_| FuncError::ExactlyXArgs("it".into(), N))
}

fn to_json(arguments: &[Value]) -> Result<Value, FuncError> {
    let [value] = exactly(arguments)?;
    Ok(Value::from(json_of(value).to_string()))
}

fn nindent(arguments: &[Value]) -> Result<Value, FuncError> {
    let [count, value] = exactly(arguments)?;
    let Json::Number(count) = json_of(count) else {
        return Err(FuncError::Generic(format!("{count} is no number")));
    };
    let indent = format!("\n{}", " ".repeat(count.as_u64().unwrap_or_default() as usize));
    Ok(Value::from(format!("{indent}{}", text(value)?.replace('\n', &indent))))
}

fn quote(arguments: &[Value]) -> Result<Value, FuncError> {
    let [value] = exactly(arguments)?;
    Ok(Value::from(Json::String(value.to_string()).to_string()))
}

/// Helm reads numbers as floating point, and would print large ones with an exponent.
fn int64(arguments: &[Value]) -> Result<Value, FuncError> {
    let [value] = exactly(arguments)?;
    Ok(value.clone())
}

fn omit(arguments: &[Value]) -> Result<Value, FuncError> {
    let [fields, key] = exactly(arguments)?;
    let Value::Map(fields) = fields else {
        return Err(FuncError::Generic(format!("{fields} is no map")));
    };
    let mut fields = fields.clone();
    fields.remove(text(key)?);
    Ok(Value::Map(fields))
}

fn has_key(arguments: &[Value]) -> Result<Value, FuncError> {
    let [fields, key] = exactly(arguments)?;
    let key = text(key)?;
    Ok(Value::from(matches!(fields, Value::Map(fields) if fields.contains_key(key))))
}

fn adler32sum(arguments: &[Value]) -> Result<Value, FuncError> {
    let [value] = exactly(arguments)?;
    let step = |(a, b): (u32, u32), byte: u8| {
        let a = (a + u32::from(byte)) % 65_521;
        (a, (b + a) % 65_521)
    };
    let (a, b) = text(value)?.bytes().fold((1, 0), step);
    Ok(Value::from(((b << 16) | a).to_string()))
}

fn to_yaml(arguments: &[Value]) -> Result<Value, FuncError> {
    let [value] = exactly(arguments)?;
    let mut out = String::new();
    block(&json_of(value), 0, &mut out);
    Ok(Value::from(out.trim_end().trim_start_matches('\n')))
}

/// In the form of Helm's library: keys in order, a list at the column of its key.
fn block(value: &Json, indent: usize, out: &mut String) {
    match value {
        Json::Object(fields) if !fields.is_empty() => entries(fields, indent, out),
        Json::Array(list) if !list.is_empty() => {
            for item in list {
                let mut inner = String::new();
                block(item, indent + 2, &mut inner);
                let _ = write!(out, "\n{}- {}", " ".repeat(indent), inner.trim_start());
            }
        }
        scalar => out.push_str(&in_line(scalar)),
    }
}

fn entries(fields: &Map<String, Json>, indent: usize, out: &mut String) {
    let mut keys: Vec<&String> = fields.keys().collect();
    keys.sort();
    for key in keys {
        let value = &fields[key];
        let nested = value.is_object() && value != &json!({});
        let space =
            if nested || value.as_array().is_some_and(|it| !it.is_empty()) { "" } else { " " };
        let name = in_line(&json!(key));
        let _ = write!(out, "\n{}{name}:{space}", " ".repeat(indent));
        block(value, if nested { indent + 2 } else { indent }, out);
    }
}

/// A text that YAML reads as itself stands bare.
fn in_line(value: &Json) -> String {
    match value.as_str() {
        Some(bare) if serde_yaml_ng::from_str::<Json>(bare).is_ok_and(|read| read == *value) => {
            bare.to_owned()
        }
        _ => value.to_string(),
    }
}
