//! W3C Baggage, as claims.

mod common;

use common::{PARTICIPATING, send};

const ALLOW: &str = r#"{"baggage_allow": ["userId", "serverNode"]}"#;

fn members(n: usize) -> String {
    (0..n).map(|n| format!("k{n:05}=v")).collect::<Vec<_>>().join(",")
}

#[test]
fn baggage_within_the_limits_is_sent_on_untouched_whatever_is_in_it() {
    for value in [
        "userId=alice",
        "key1=value1;property1;property2, key2 = value2, key3=value3; propertyKey=propertyValue",
        "a=b=c==,x=%20%zz",
        "not baggage at all",
        ", ,",
        "",
    ] {
        let sent = send(PARTICIPATING, &[("baggage", value), ("Baggage", "second=1")]);
        assert_eq!(sent.headers.iter().filter(|(n, _)| n == "baggage").count(), 2, "{value}");
        assert!(sent.headers.contains(&("baggage".into(), value.into())), "{value}");
    }
}

#[test]
fn at_least_64_members_must_be_propagated() {
    assert_eq!(
        send(PARTICIPATING, &[("baggage", &members(64))]).get("baggage"),
        Some(&*members(64))
    );
    for n in [65, 180, 10_000] {
        let sent = send(PARTICIPATING, &[("baggage", &members(n))]);
        assert_eq!(sent.get("baggage"), Some(&*members(64)), "{n}");
    }
    // One member in each header.
    let one: Vec<String> = (0..70).map(|n| format!("k{n:05}=v")).collect();
    let headers: Vec<_> = one.iter().map(|m| ("baggage", m.as_str())).collect();
    assert_eq!(send(PARTICIPATING, &headers).get("baggage"), Some(&*members(64)));
}

#[test]
fn at_least_8192_bytes_must_be_propagated_and_never_a_partial_member() {
    let exact = format!("a={},b={}", "x".repeat(4000), "y".repeat(8192 - 4000 - 5));
    assert_eq!(exact.len(), 8192);
    assert_eq!(send(PARTICIPATING, &[("baggage", &exact)]).get("baggage"), Some(&*exact));
    // One byte more: the member that does not fit goes, the ones around it stay.
    let sent = send(PARTICIPATING, &[("baggage", &format!("{exact}y,c=1"))]);
    assert_eq!(sent.get("baggage"), Some(&*format!("a={},c=1", "x".repeat(4000))));
    let huge = format!("a={}", "x".repeat(9000));
    assert_eq!(send(PARTICIPATING, &[("baggage", &huge)]).get("baggage"), None);
}

#[test]
fn white_space_must_be_trimmed_and_equal_signs_belong_to_the_value() {
    let list = " userId =  a==b ;p = 1 ; q\t, other=1 ,serverNode=DF%2028";
    let sent = send(ALLOW, &[("baggage", list)]);
    assert_eq!(sent.get("baggage"), Some("userId =  a==b ;p = 1 ; q,serverNode=DF%2028"));
}

#[test]
fn an_allow_list_lets_its_keys_through_and_no_others() {
    for (received, sent_on) in [
        ("userId=alice", Some("userId=alice")),
        ("userid=alice", None),
        ("secret=1", None),
        ("secret=1,userId=alice;p,userId=bob", Some("userId=alice;p,userId=bob")),
        ("userId=al\\ice,serverNode=1", Some("serverNode=1")),
        ("userId", None),
        ("", Some("")),
    ] {
        let sent = send(ALLOW, &[("baggage", received)]);
        assert_eq!(sent.get("baggage"), sent_on, "{received}");
    }
    let none = r#"{"baggage_allow": []}"#;
    assert_eq!(send(none, &[("baggage", "a=1")]).get("baggage"), None);
}

#[test]
fn a_list_far_beyond_the_limits_is_read_so_far_and_no_further() {
    let late = |n: usize| format!("{}userId=alice", "x=1,".repeat(n));
    assert_eq!(send(ALLOW, &[("baggage", &late(1_000))]).get("baggage"), Some("userId=alice"));
    assert_eq!(send(ALLOW, &[("baggage", &late(1_024))]).get("baggage"), None);
}

#[test]
fn order_and_duplicates_are_preserved_across_headers() {
    let sent = send(ALLOW, &[("baggage", "userId=2,x=1"), ("baggage", "serverNode=1,userId=1")]);
    assert_eq!(sent.get("baggage"), Some("userId=2,serverNode=1,userId=1"));
}

#[test]
fn baggage_that_is_not_configured_is_not_looked_at() {
    let config = r#"{"extract": ["tracecontext"], "inject": ["tracecontext"]}"#;
    let sent = send(config, &[("baggage", &members(100))]);
    assert_eq!(sent.get("baggage"), Some(&*members(100)));
    // Read and not written: it ends here. Written and not read: it is not ours.
    let config = r#"{"inject": ["tracecontext"]}"#;
    assert_eq!(send(config, &[("baggage", "a=1")]).get("baggage"), None);
    let config = r#"{"extract": ["tracecontext"], "baggage_allow": []}"#;
    assert_eq!(send(config, &[("baggage", "a=1")]).get("baggage"), Some("a=1"));
}
