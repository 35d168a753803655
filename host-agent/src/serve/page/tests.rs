//! The page in a real browser, without a screen.
//!
//! `PINTLE_PAGE_SHOTS=dir` keeps the screenshots, to be looked at.

use std::path::Path;
use std::process::{Command, Output};

use super::*;
use crate::serve::admin::tests::Made;

/// Runs Chromium on the page of `made` with a profile of its own, after three seconds of its time.
async fn chromium(made: &Made, arguments: Vec<String>) -> Output {
    let profile = tempfile::tempdir().unwrap();
    let url = format!("http://{}/", made.address);
    let mut command = Command::new("chromium");
    command
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"])
        .args(["--disable-background-networking", "--disable-dev-shm-usage"])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .args(arguments)
        .arg(url);
    tokio::task::spawn_blocking(move || {
        let output = command.output().expect("chromium is missing: apt-get install chromium");
        drop(profile);
        output
    })
    .await
    .unwrap()
}

/// The page once `last`, which comes by an event, is there; on a busy machine that takes more time.
async fn dom(made: &Made, last: &str) -> String {
    let mut html = String::new();
    for wait in [4_000, 10_000, 20_000] {
        let arguments = vec!["--dump-dom".to_owned(), format!("--timeout={wait}")];
        html = String::from_utf8(chromium(made, arguments).await.stdout).unwrap();
        if html.contains(last) {
            break;
        }
    }
    html
}

async fn screenshot(made: &Made, to: &Path, size: &str, dark: bool) {
    let mut arguments = vec![
        format!("--screenshot={}", to.display()),
        format!("--window-size={size}"),
        "--timeout=4000".to_owned(),
        "--hide-scrollbars".to_owned(),
    ];
    if dark {
        arguments.push("--blink-settings=preferredColorScheme=0".to_owned());
    }
    let output = chromium(made, arguments).await;
    let png = std::fs::read(to).unwrap_or_else(|_| panic!("{output:?}"));
    assert!(png.starts_with(b"\x89PNG"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_shows_what_the_agent_knows() {
    let made = Made::start(false).await;
    let html = dom(&made, "pintle release payments").await;
    for text in [
        "agent edge-1",
        "live",
        "orders-2",
        "10.0.7.4:8002",
        "eu-1b",
        "open on envoy-1",
        "5 consecutive failures",
        "pintle breaker force-close orders/orders-2 --ttl 5m",
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
    let html = dom(&made, "Stale").await;
    assert!(html.contains("Stale: this is the last good state from disk"), "{html}");
    assert!(html.contains("etcd does not answer"));
}

#[tokio::test(flavor = "multi_thread")]
async fn it_can_be_looked_at_wide_narrow_and_dark() {
    let made = Made::start(true).await;
    let temp = tempfile::tempdir().unwrap();
    let kept = std::env::var_os("PINTLE_PAGE_SHOTS");
    let dir = kept.as_ref().map_or(temp.path(), Path::new);
    screenshot(&made, &dir.join("wide.png"), "1280,1500", false).await;
    screenshot(&made, &dir.join("dark.png"), "1280,1500", true).await;
    screenshot(&made, &dir.join("narrow.png"), "500,1800", false).await;
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
