use serde_json::json;

use super::*;
use crate::{DAY, SECOND};

#[derive(Debug, PartialEq)]
struct All {
    whole: u8,
    real: f64,
    lasting: Duration,
    flag: bool,
    word: char,
    text: String,
    below: Option<Below>,
    list: Vec<Below>,
    texts: Vec<String>,
    labels: BTreeMap<String, String>,
}

#[derive(Debug, PartialEq)]
struct Below {
    port: u16,
}

impl Settings for Below {
    fn read(keys: &mut Section) -> Self {
        Self { port: keys.whole("port", 1..=65_535, None) }
    }
}

impl Settings for All {
    fn read(keys: &mut Section) -> Self {
        Self {
            whole: keys.whole("whole", 1..=16, 3),
            real: keys.real("real", 0.0..=1.0, 0.5),
            lasting: keys.duration("lasting", SECOND..=DAY, SECOND),
            flag: keys.flag("flag", true),
            word: keys.word("word", &[("one", '1'), ("two", '2'), ("three", '3')], '1'),
            text: keys.text("text", 1..=4, "none".to_owned()),
            below: keys.section("below"),
            list: keys.list("list", 0..=2, read).unwrap_or_default(),
            texts: keys.texts("texts", 1..=2).unwrap_or_default(),
            labels: keys.labels("labels", 1).unwrap_or_default(),
        }
    }
}

fn refused(value: Value) -> String {
    read::<All>("part", value).unwrap_err().to_string()
}

#[test]
fn what_is_written_is_read_and_the_rest_has_its_default() {
    let none = read::<All>("part", json!({})).unwrap();
    assert_eq!((none.whole, none.real, none.lasting, none.flag), (3, 0.5, SECOND, true));
    assert_eq!((none.word, none.text.as_str(), none.below), ('1', "none", None));
    let nulls = json!({"whole": null, "below": null, "list": null, "word": null});
    assert_eq!(read::<All>("part", nulls), read("part", Value::Null));
    let all = json!({
        "whole": 16.0, "real": 1, "lasting": "1d", "flag": false, "word": "three", "text": "abcd",
        "below": {"port": 1}, "list": [{"port": 2}, {"port": 65_535}], "texts": ["a"],
        "labels": {"k": "v"},
    });
    let all = read::<All>("part", all).unwrap();
    assert_eq!((all.whole, all.real, all.lasting, all.flag), (16, 1.0, DAY, false));
    assert_eq!((all.word, all.text.as_str(), all.below), ('3', "abcd", Some(Below { port: 1 })));
    assert_eq!(all.list, [Below { port: 2 }, Below { port: 65_535 }]);
    assert_eq!((all.texts, all.labels), (vec!["a".into()], [("k".into(), "v".into())].into()));
}

#[test]
fn a_refusal_has_the_path_the_range_and_what_was_found() {
    for (value, says) in [
        (json!(7), "part must be an object of keys, found 7"),
        (json!({"whole": 0}), "part.whole must be a whole number from 1 to 16, found 0"),
        (json!({"whole": "3"}), "part.whole must be a whole number from 1 to 16, found \"3\""),
        (json!({"whole": -1}), "part.whole must be a whole number from 1 to 16, found -1"),
        (json!({"whole": 2.5}), "part.whole must be a whole number from 1 to 16, found 2.5"),
        (json!({"whole": 1e300}), "part.whole must be a whole number from 1 to 16, found 1e+300"),
        (json!({"whole": [3]}), "part.whole must be a whole number from 1 to 16, found a list"),
        (json!({"real": 1.01}), "part.real must be a number from 0.0 to 1.0, found 1.01"),
        (json!({"real": "1"}), "part.real must be a number from 0.0 to 1.0, found \"1\""),
        (json!({"lasting": 60}), "part.lasting must be a duration from 1s to 1d, found 60"),
        (json!({"lasting": "60"}), "part.lasting must be a duration from 1s to 1d, found \"60\""),
        (json!({"lasting": "2d"}), "part.lasting must be a duration from 1s to 1d, found \"2d\""),
        (json!({"flag": "yes"}), "part.flag must be true or false, found \"yes\""),
        (json!({"word": "four"}), "part.word must be one, two or three, found \"four\""),
        (json!({"word": {}}), "part.word must be one, two or three, found an object"),
        (json!({"text": ""}), "part.text must be text of 1 to 4 bytes, found \"\""),
        (json!({"text": true}), "part.text must be text of 1 to 4 bytes, found true"),
        (json!({"below": 1}), "part.below must be an object of keys, found 1"),
        (
            json!({"below": {}}),
            "part.below.port must be a whole number from 1 to 65535, found nothing",
        ),
        (json!({"below": {"prot": 1}}), "unknown key part.below.prot, accepted are port"),
        (json!({"list": {}}), "part.list must be a list of 0 to 2, found an object"),
        (json!({"list": [1, 2, 3]}), "part.list must be a list of 0 to 2, found 3"),
        (json!({"list": [{"port": 1}, {"port": 0}]}), "part.list[1].port must be a whole number"),
        (json!({"texts": []}), "part.texts must be a list of 1 to 2, found 0"),
        (json!({"texts": [1]}), "part.texts[0] must be text, found 1"),
        (json!({"labels": {"a": "", "b": ""}}), "part.labels must be an object of at most 1 texts"),
        (json!({"labels": {"a": 1}}), "part.labels.a must be text, found 1"),
        (
            json!({"wohle": 1, "real": 7}),
            "unknown key part.wohle, accepted are whole, real, lasting",
        ),
        (json!({"whole": 0, "real": 7}), "part.whole must be"),
    ] {
        let error = refused(value.clone());
        assert!(error.starts_with(says), "{value}: {error}");
    }
}

#[test]
fn what_was_found_fits_a_line_whatever_was_written() {
    let long = "\u{1}\n\"".repeat(1000);
    let error = refused(json!({"word": long}));
    assert!(error.len() < 600 && !error.contains('\n'), "{error}");
    assert!(error.ends_with("and more"), "{error}");
}
