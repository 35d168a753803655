//! The page in a real browser, without a screen.
//!
//! `PAGE_SHOTS=dir` keeps the screenshots, to be looked at.

use std::path::Path;

use pintle_tests::browser;

use super::*;
use crate::serve::admin::tests::Made;

fn url(made: &Made) -> String {
    format!("http://{}/", made.address)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_shows_what_the_agent_knows() {
    let made = Made::start(false).await;
    let html = browser::document(&url(&made), "pintle release payments").await.unwrap();
    for text in [
        "agent edge-1",
        "● live",
        "orders-2",
        "10.0.7.4:8002",
        "eu-1b",
        "open on envoy-1",
        "5 consecutive failures",
        "pintle breaker clear orders/orders-2",
        "Last minute: ",
        "since start: ",
        "Services in trouble",
        "not closed",
        "Only what is wrong",
        "draining",
        "pintle undrain orders/orders-3",
        "89 %",
        "48 ms",
        "pintle release payments",
        "endpoint: drain",
        "uid 0, pid 71",
        "newest",
        "closed -&gt; open on envoy-1: 5 consecutive failures",
    ] {
        assert!(html.contains(text), "{text}\n\n{html}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_snapshot_is_said_before_anything_else() {
    let made = Made::start(true).await;
    let html = browser::document(&url(&made), "Stale: ").await.unwrap();
    assert!(html.contains("Stale: this is the last good state from disk"), "{html}");
    assert!(html.contains("etcd does not answer"));
}

#[tokio::test(flavor = "multi_thread")]
async fn it_can_be_looked_at_wide_narrow_and_dark() {
    let made = Made::start(true).await;
    let temp = tempfile::tempdir().unwrap();
    let kept = std::env::var_os("PAGE_SHOTS");
    let dir = kept.as_ref().map_or(temp.path(), Path::new);
    // The page before its first event has 27 kB.
    for (name, size, dark) in [
        ("wide.png", (1280, 1500), false),
        ("dark.png", (1280, 1500), true),
        ("narrow.png", (390, 1800), false),
    ] {
        browser::picture(&url(&made), &dir.join(name), size, dark, 60_000).await.unwrap();
    }
}

#[test]
fn the_page_needs_nothing_but_itself() {
    for outside in ["http://", "https://", "//cdn", "@import", "url(", "innerHTML", "eval("] {
        assert!(!HTML.contains(outside), "{outside}");
    }
    for (opening, closing) in [("<main", "</main>"), ("<h1", "</h1>"), ("<script", "</script>")] {
        assert_eq!(HTML.matches(opening).count(), 1);
        assert_eq!(HTML.matches(closing).count(), 1);
    }
    assert!(HTML.contains(r#"<html lang="en">"#));
    assert!(HTML.contains("aria-live=\"polite\""));
    assert!(HTML.contains("prefers-color-scheme"));
}
