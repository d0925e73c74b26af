//! The page of `copy --report` in a real browser: it is drawn, says nothing on the console, and loads nothing.

use std::{
    fs,
    io::{Read, Write},
    net::TcpListener,
    path::Path,
    process::Command,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use tempfile::tempdir;

use crate::support::{Outcome, blockferry, images::sparse_image, run::run};

/// Chromium without a screen, in a profile of its own, that reaches the network through `proxy` alone.
fn chromium(profile: &Path, proxy: &str, arguments: &[&str]) -> Outcome {
    let mut command = Command::new("chromium");
    command
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
        ])
        .args([
            "--no-first-run",
            "--disable-background-networking",
            "--disable-sync",
        ])
        .args([
            "--disable-component-update",
            "--disable-default-apps",
            "--disable-extensions",
        ])
        .args([
            "--disable-dev-shm-usage",
            "--hide-scrollbars",
            "--enable-logging=stderr",
        ])
        .arg(format!("--proxy-server={proxy}"))
        .arg("--proxy-bypass-list=<-loopback>")
        .arg(format!("--user-data-dir={}", profile.display()))
        .args(arguments);
    run(&mut command)
}

/// A proxy that lets nothing through, and what was asked of it.
fn deaf_proxy() -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address");
    let asked = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&asked);
    // It ends with the tests.
    thread::spawn(move || {
        for mut connection in listener.incoming().flatten() {
            let mut request = [0; 1024];
            let _ = connection.set_read_timeout(Some(Duration::from_secs(1)));
            let length = connection.read(&mut request).unwrap_or(0);
            let request = String::from_utf8_lossy(&request[..length]);
            let first = request.lines().next().unwrap_or_default();
            noted.lock().expect("not poisoned").push(first.to_owned());
            let _ = connection.write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n");
        }
    });
    (address.to_string(), asked)
}

#[test]
fn a_browser_draws_the_page_and_loads_nothing() {
    let dir = tempdir().expect("a directory");
    let at = |name: &str| dir.path().join(name);
    sparse_image(&at("image.raw"), 64 << 20);
    let mut command = blockferry(["copy", "--rate=8M", "--report"]);
    command
        .arg(at("page.html"))
        .arg(at("image.raw"))
        .arg(at("copy.raw"));
    run(&mut command).success();
    let page = format!("file://{}", at("page.html").display());
    let (proxy, asked) = deaf_proxy();

    let dumped = chromium(&at("one"), &proxy, &["--dump-dom", &page]).success();
    let dom = dumped.text();
    assert!(
        dom.matches("<svg").count() > 5 && dom.contains("<polyline"),
        "{dom}"
    );
    assert!(
        dom.contains("Throughput") && dom.trim_end().ends_with("</html>"),
        "{dom}"
    );
    let console: Vec<_> = dumped
        .stderr
        .lines()
        .filter(|line| line.contains("CONSOLE"))
        .collect();
    assert!(console.is_empty(), "{console:?}");

    for (name, size) in [("wide", "1200,1400"), ("narrow", "390,1400")] {
        let file = at(name).with_extension("png");
        let shot = format!("--screenshot={}", file.display());
        let size = format!("--window-size={size}");
        chromium(&at(name), &proxy, &[&shot, &size, &page]).success();
        let picture = fs::read(&file).expect("a screenshot");
        assert!(picture.starts_with(b"\x89PNG"));
        // An empty page is a few thousand bytes: it is all one colour.
        assert!(picture.len() > 30_000, "{name}: {} bytes", picture.len());
    }
    let foreign = || {
        let asked = asked.lock().expect("not poisoned");
        let foreign = asked.iter().filter(|request| !is_errand(request));
        foreign.cloned().collect::<Vec<_>>()
    };
    assert!(foreign().is_empty(), "{:?}", foreign());

    // What a page loads does come to the proxy.
    fs::write(
        at("other.html"),
        "<!doctype html><img src=\"http://elsewhere.invalid/\">",
    )
    .expect("written");
    let page = format!("file://{}", at("other.html").display());
    chromium(&at("other"), &proxy, &["--dump-dom", &page]).success();
    assert!(
        foreign()
            .iter()
            .any(|request| request.contains("elsewhere.invalid"))
    );
}

/// Whether the browser asks this for itself: for its own updates and the time, whatever it is told not to.
fn is_errand(request: &str) -> bool {
    let address = request.split(' ').nth(1).unwrap_or_default();
    let host = address.split("://").last().unwrap_or_default();
    let host = host.split(['/', ':']).next().unwrap_or_default();
    let its_own = [
        ".google.com",
        ".googleapis.com",
        ".gvt1.com",
        ".gstatic.com",
    ];
    its_own.iter().any(|domain| host.ends_with(domain))
}
