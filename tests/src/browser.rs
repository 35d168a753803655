//! Chromium without a screen: what a person's browser makes of a page.

use std::path::Path;
use std::process::Output;

use tempfile::TempDir;

use crate::{Error, Result, tools};

/// How long the page has, in milliseconds: more when the machine turns out to be busy.
const WAITS: [u32; 3] = [4_000, 10_000, 20_000];

/// The page's document once `last` is in it, or as it is after the longest wait; without its
/// scripts and styles, which hold most of the words that the page can show.
pub async fn document(url: &str, last: &str) -> Result<String> {
    let mut html = String::new();
    for wait in WAITS {
        let done = chromium(url, &["--dump-dom", &format!("--timeout={wait}")]).await?;
        html = without("style", without("script", String::from_utf8_lossy(&done.stdout).into()));
        if html.contains(last) {
            break;
        }
    }
    Ok(html)
}

fn without(element: &str, mut html: String) -> String {
    let (opening, closing) = (format!("<{element}"), format!("</{element}>"));
    while let Some(from) = html.find(&opening) {
        let until = html[from..].find(&closing).map_or(html.len(), |at| from + at + closing.len());
        html.replace_range(from..until, "");
    }
    html
}

/// A picture of the page, written to `to`: PNG, of this width and height, of the dark scheme if
/// asked for. One of fewer bytes than `at_least` shows a page that is still empty, and is taken
/// again.
pub async fn picture(
    url: &str,
    to: &Path,
    size: (u32, u32),
    dark: bool,
    at_least: usize,
) -> Result<()> {
    let mut complaint = String::new();
    for wait in WAITS {
        let mut args = vec![
            format!("--screenshot={}", to.display()),
            format!("--window-size={},{}", size.0, size.1),
            format!("--timeout={wait}"),
            "--hide-scrollbars".to_owned(),
        ];
        if dark {
            args.push("--blink-settings=preferredColorScheme=0".to_owned());
        }
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let done = chromium(url, &args).await?;
        let png = std::fs::read(to).unwrap_or_default();
        if png.starts_with(b"\x89PNG") && png.len() >= at_least {
            return Ok(());
        }
        complaint = format!("{} bytes; {}", png.len(), String::from_utf8_lossy(&done.stderr));
    }
    Err(Error::new(format!("no picture of {url}: {complaint}")))
}

async fn chromium(url: &str, args: &[&str]) -> Result<Output> {
    let profile = TempDir::with_prefix("pintle-chromium-")?;
    let mut command = tokio::process::Command::new(tools::chromium()?);
    command
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"])
        .args(["--disable-background-networking", "--disable-dev-shm-usage"])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .args(args)
        .arg(url)
        .kill_on_drop(true);
    Ok(command.output().await?)
}
