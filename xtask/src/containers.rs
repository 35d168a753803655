//! The files for containers, read by the tools that a user has: a compose file by docker-compose, a
//! Dockerfile by hadolint.

use std::path::Path;
use std::process::Command;

use pintle_tests::tools;

use crate::setup;

/// What docker-compose has against a file; nothing is empty.
fn compose(file: &Path) -> String {
    let read = Command::new("docker-compose").arg("-f").arg(file).args(["config", "-q"]).output();
    let read = read.expect("docker-compose");
    let said = String::from_utf8_lossy(&[read.stdout, read.stderr].concat()).into_owned();
    assert_eq!(read.status.success(), said.is_empty(), "{said}");
    said
}

#[test]
fn compose_files_are_what_docker_compose_takes() {
    let shipped = tools::root().join("envoy/compose/compose.yaml");
    assert_eq!(compose(&shipped), "");
    let place = tempfile::tempdir().unwrap();
    for (name, service) in [("registry", "orders"), ("file", "orders,static=127.0.0.1:8001")] {
        let dir = place.path().join(name);
        let agent = tools::agent().unwrap();
        let made = Command::new(agent).arg("init").arg(&dir).args(["--service", service]).output();
        let made = made.unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        assert_eq!(compose(&dir.join("compose.yaml")), "", "{service}");
    }
    // It reads what it is given.
    let text = std::fs::read_to_string(&shipped).unwrap();
    for (is, wrong, said) in [
        ("    depends_on: [agent]", "    depends_on: [agents]", "'agents'"),
        ("    command: [run,", "    comand: [run,", "'comand'"),
        ("- run:/run/pintle", "- runs:/run/pintle", "runs:/run/pintle"),
    ] {
        let file = place.path().join("wrong.yaml");
        std::fs::write(&file, text.replacen(is, wrong, 1)).unwrap();
        let refused = compose(&file);
        assert!(refused.contains(said), "{wrong}: {refused}");
    }
}

#[test]
fn dockerfiles_have_nothing_that_hadolint_warns_of() {
    let judged = |file: &Path| {
        let said = Command::new(setup::hadolint()).arg("--no-color").arg(file).output().unwrap();
        String::from_utf8_lossy(&said.stdout).into_owned()
    };
    let file = tools::root().join("envoy/kubernetes/Dockerfile");
    assert_eq!(judged(&file), "");
    let wrong = tempfile::NamedTempFile::new().unwrap();
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&wrong, text.replace("debian:12-slim", "debian")).unwrap();
    let said = judged(wrong.path());
    assert!(said.contains("DL3006"), "{said}");
}
