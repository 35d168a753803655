//! `pintle dlq`: messages that could not be used.

use std::io::{Write, stdout};

use clap::Subcommand;
use serde_json::{Value, json};

use super::CliError;
use super::args::NatsArgs;
use super::orders::connect;
use super::reads::print_json;
use super::table::Table;
use crate::events::DeadLetter;
use crate::serve::admin::view::time;

#[derive(Debug, Subcommand)]
pub(super) enum DlqCommand {
    /// Lists the dead letters, oldest first.
    #[command(
        after_help = "Examples:\n  pintle dlq list\n  pintle dlq list --limit 10 --output json"
    )]
    List {
        #[command(flatten)]
        nats: NatsArgs,
        /// How many.
        #[arg(long, default_value_t = 100)]
        limit: usize,
    },
    /// Shows one with its bytes.
    #[command(after_help = "Example:\n  pintle dlq show 3")]
    Show {
        #[command(flatten)]
        nats: NatsArgs,
        /// Its number in the list.
        number: u64,
    },
    /// Publishes the original again, and takes the letter away.
    #[command(after_help = "Example:\n  pintle dlq replay 3")]
    Replay {
        #[command(flatten)]
        nats: NatsArgs,
        /// Its number in the list.
        number: u64,
    },
    /// Takes letters away for good.
    #[command(after_help = "Examples:\n  pintle dlq purge 3\n  pintle dlq purge --all")]
    Purge {
        #[command(flatten)]
        nats: NatsArgs,
        /// Its number in the list.
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        number: Option<u64>,
        /// All of them.
        #[arg(long)]
        all: bool,
    },
}

fn letter(letter: &DeadLetter) -> Value {
    json!({
        "number": letter.number,
        "at": time(letter.at),
        "reason": letter.reason,
        "detail": letter.detail,
        "stream": letter.stream,
        "sequence": letter.sequence,
        "subject": letter.subject,
        "deliveries": letter.deliveries,
        "agent": letter.agent,
        "cut": letter.cut,
        "payload": String::from_utf8_lossy(&letter.payload),
    })
}

fn absent(number: u64) -> CliError {
    CliError::No(format!("there is no dead letter {number}; pintle dlq list shows all"))
}

pub(super) async fn dlq(command: DlqCommand, json: bool) -> Result<(), CliError> {
    match command {
        DlqCommand::List { nats, limit } => {
            let letters = connect(&nats).await?.dead_letters(1, limit.min(10_000)).await?;
            if json {
                let rows: Vec<Value> = letters.iter().map(letter).collect();
                return print_json(&json!({ "dead_letters": rows }));
            }
            let mut table = Table::new(&["number", "at", "reason", "subject", "tries", "detail"]);
            for letter in letters {
                table.row([
                    letter.number.to_string(),
                    time(letter.at),
                    letter.reason,
                    letter.subject,
                    letter.deliveries.to_string(),
                    letter.detail,
                ]);
            }
            stdout().write_all(table.render("No dead letter.").as_bytes())?;
            Ok(())
        }
        DlqCommand::Show { nats, number } => {
            let found = connect(&nats).await?.dead_letter(number).await?;
            let found = found.ok_or_else(|| absent(number))?;
            print_json(&letter(&found))
        }
        DlqCommand::Replay { nats, number } => {
            let published = connect(&nats).await?.replay(number).await?;
            if json {
                return print_json(&json!({ "replayed": number, "sequence": published.sequence }));
            }
            writeln!(stdout(), "{number} is event {} now", published.sequence)?;
            Ok(())
        }
        DlqCommand::Purge { nats, number, all } => {
            let number = if all { None } else { number };
            let purged = connect(&nats).await?.purge(number).await?;
            if json {
                print_json(&json!({ "purged": purged }))?;
            } else {
                let letters = if purged == 1 { "dead letter" } else { "dead letters" };
                writeln!(stdout(), "{purged} {letters} purged")?;
            }
            if let Some(number) = number.filter(|_| purged == 0) {
                return Err(absent(number));
            }
            Ok(())
        }
    }
}
