//! The command line as a contract: flags that scripts use, exit codes, help that holds.

use super::*;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(line.split_whitespace())
}

#[test]
fn the_definition_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn the_flags_that_scripts_use_are_there() {
    for line in [
        "pintle run --config a.yaml --etcd http://127.0.0.1:1 --nats nats://127.0.0.1:2 \
         --file s.yaml --socket /tmp/s --admin 127.0.0.1:3 --state-dir /tmp/d --prefix /services/ \
         --allow 127.0.0.0/8 --allow 10.0.0.0/8 --agent-id a --log-format json",
        "pintle check --config a.yaml --envoy 127.0.0.1:9901 --output json",
        "pintle services --watch --admin 127.0.0.1:3",
        "pintle services orders --output json",
        "pintle services --rejected",
        "pintle services --held",
        "pintle explain orders --metadata version=2 --tag new --admin 127.0.0.1:3",
        "pintle bypass orders --ttl 10m",
        "pintle bypass orders --off",
        "pintle shadow orders --ttl 10m",
        "pintle failover orders --tag dr --ttl 1h",
        "pintle failover orders --region eu-2",
        "pintle failover orders --off",
        "pintle breakers --watch",
        "pintle breaker force-open orders/1 --ttl 5m --nats nats://127.0.0.1:2",
        "pintle breaker force-close orders/1 --ttl 5m",
        "pintle breaker clear orders/1",
        "pintle events --follow",
        "pintle publish endpoint orders/1 {}",
        "pintle drain orders/1 --ttl 60s",
        "pintle undrain orders/1",
        "pintle dlq list",
        "pintle dlq show 7",
        "pintle dlq replay 7",
        "pintle dlq purge 7",
        "pintle dlq purge --all",
        "pintle release orders",
        "pintle register --config a.yaml",
        "pintle register --service s --id 1 --address 10.0.0.1 --port 80 --check-http /healthz",
        "pintle completions bash",
    ] {
        if let Err(error) = parse(line) {
            panic!("{line}\n{error}");
        }
    }
}

#[test]
fn what_is_not_meant_is_refused() {
    for line in [
        "pintle",
        "pintle fly",
        "pintle run --wings 2",
        "pintle drain orders/1 --ttl soon",
        "pintle failover orders",
        "pintle failover orders --tag a --region b",
        "pintle bypass orders --off --ttl 1m",
        "pintle dlq purge",
        "pintle dlq purge 7 --all",
        "pintle services orders --rejected",
        "pintle register --service s",
        "pintle completions klingon",
        "pintle services --output xml",
    ] {
        assert!(parse(line).is_err(), "{line}");
    }
}

#[test]
fn flags_of_run_reach_the_configuration_under_their_names() {
    let Command::Run(args) = parse(
        "pintle run --etcd http://a:1 --etcd http://b:1 --socket /s --log-format json --allow ::1/128",
    )
    .unwrap()
    .command
    else {
        panic!("not run");
    };
    let flags = args.origin().flags;
    let known: Vec<&str> = crate::config::KEYS.iter().map(|key| key.flag).collect();
    assert!(flags.keys().all(|flag| known.contains(flag)), "{flags:?}");
    assert_eq!(flags["etcd"], ["http://a:1", "http://b:1"]);
    assert_eq!(flags["log-format"], ["json"]);
    for key in crate::config::KEYS {
        let command = Cli::command();
        let run = command.find_subcommand("run").unwrap();
        let argument = run.get_arguments().find(|it| it.get_long() == Some(key.flag));
        let help = argument.unwrap().get_help().unwrap().to_string();
        assert!(help.contains(key.env), "the help of --{} names {}", key.flag, key.env);
    }
}

#[test]
fn every_command_has_help_and_an_example_of_itself() {
    fn visit(command: &clap::Command, path: &str) {
        let own = format!("{path}{} ", command.get_name());
        if command.get_name() == "help" {
            return;
        }
        assert!(command.get_about().is_some(), "{own}");
        if !command.has_subcommands() {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let example = help.split_once("xample").map_or("", |(_, rest)| rest);
            assert!(example.contains(own.trim_end()), "{own}: {help:?}");
        }
        command.get_subcommands().for_each(|inner| visit(inner, &own));
    }
    visit(&Cli::command(), "");
}
