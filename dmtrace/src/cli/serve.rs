//! `dmtrace serve`.

use std::{path::Path, process::ExitCode};

use anyhow::{Context as _, Result};
use dmtrace_core::verdict::Class;
use serde::Deserialize as _;
use serde_json::Value;

use super::{args::ServeArgs, failure::exit};
use crate::{
    finding::{SetOwner, SetReport},
    history,
    host::{self, Roots},
    metrics::{self, Exposure},
    output::{Out, time},
    service::{self, ExportOptions, SocketAccess},
    trace::run::build_runtime,
    wording::{count_noun, finding_commands},
};

pub(super) fn run(args: &ServeArgs, as_json: bool, out: &mut Out) -> Result<ExitCode> {
    if args.status {
        let status = service::ask_status()?;
        if as_json {
            out.print_json(&status)?;
        } else {
            print_status(&status, out)?;
        }
        return Ok(match status["findings"]["standing"].as_u64() {
            Some(0) if status["unread"].is_string() => exit::incomplete_code(),
            Some(0) => exit::CLEAN,
            _ => exit::findings_code(),
        });
    }
    if args.remove {
        let removed = service::remove_left_pins(&args.pins)?;
        out.print_line(&removal_text(removed, &args.pins))?;
        for pins in service::left_elsewhere() {
            out.print_line(&format!(
                "a trace is left elsewhere: dmtrace serve --remove{pins}"
            ))?;
        }
        return Ok(exit::CLEAN);
    }
    if let Some(dir) = &args.metrics_textfile {
        metrics::check_textfile_dir(dir).context("--metrics-textfile")?;
    }
    let hook = args.on_leak.as_deref().map(str::parse).transpose();
    let options = service::ServiceOptions {
        tracing: args.tuning.probe_options(),
        access: SocketAccess {
            group: args.group.as_deref().map(parse_group).transpose()?,
        },
        verbose: args.verbose,
        auto_clean: args.auto_clean,
        audit: args.audit.clone(),
        history: (!args.no_history).then(|| history::HistoryOptions {
            path: args.history.clone(),
            limit: args.history_limit << 20,
            retention: args.history_for,
            boot_id: host::clock::boot_id(&Roots::host()).unwrap_or_default(),
        }),
        pins: args.pins.clone(),
        keep: args.keep,
        export: ExportOptions {
            listen: args.metrics.clone(),
            exposure: if args.metrics_exposed {
                Exposure::Network
            } else {
                Exposure::Loopback
            },
            textfile: args.metrics_textfile.clone(),
            hook: hook.context("--on-leak")?,
        },
    };
    build_runtime()?.block_on(service::run_service(&options))?;
    Ok(exit::CLEAN)
}

/// What came of `--remove`, and where it has looked.
fn removal_text(removed: bool, pins: &Path) -> String {
    if removed {
        "tracing has stopped; nothing is left in the kernel".to_owned()
    } else {
        let shown = pins.display();
        format!("nothing to remove: no trace was left running in {shown}")
    }
}

/// Number of a group, by its name or as it is.
fn parse_group(name: &str) -> Result<u32> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    let file = "/etc/group";
    let groups = std::fs::read_to_string(file).context(file)?;
    groups
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(':');
            let found = fields.next()? == name;
            let number = fields.nth(1)?.parse().ok()?;
            found.then_some(number)
        })
        .next()
        .with_context(|| format!("--group: {file} has no group {name}"))
}

/// Who made a cookie, as `list` names it; what is not known is not named.
fn owner_text(set: &SetReport) -> String {
    let mark = set.owner_mark();
    match &set.owner {
        Some(SetOwner { pid, comm, .. }) if comm.is_empty() => format!("process {pid}{mark}"),
        Some(SetOwner { pid, comm, .. }) => format!("{comm}[{pid}]{mark}"),
        None => "owner unknown".to_owned(),
    }
}

fn print_status(status: &Value, out: &mut Out) -> Result<()> {
    let number = |value: &Value| value.as_u64().unwrap_or(0);
    let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
    let health = &status["health"];
    let findings = &status["findings"];
    out.print_line(&format!(
        "dmtrace {} running for {}, pid {}, {} backend",
        text(&status["version"]),
        time::age_text(std::time::Duration::from_secs(number(&status["seconds"]))),
        number(&status["pid"]),
        text(&health["backend"]),
    ))?;
    if let Some(seconds) = status["as_of_seconds_ago"].as_u64() {
        let age = time::age_text(std::time::Duration::from_secs(seconds));
        out.print_line(&format!(
            "the service is scanning; this status is {age} old, without the list of findings"
        ))?;
    }
    let cookies = &status["totals"]["cookies"];
    // Counted with the cookies, for their keys.
    let foreign = number(&status["foreign_sets"]);
    let and_foreign = match foreign {
        0 => String::new(),
        _ => format!(", {}", count_noun(foreign, "foreign set", "foreign sets")),
    };
    out.print_line(&format!(
        "cookies: {} made, {} removed, {} there now{and_foreign}",
        number(&cookies["created"]),
        number(&cookies["destroyed"]),
        number(&cookies["live"]).saturating_sub(foreign),
    ))?;
    out.print_line(&format!(
        "messages: seen {} = submitted {} + dropped {} (recovered from the maps); drift {}",
        number(&health["seen"]),
        number(&health["submitted"]),
        number(&health["dropped"]),
        number(&health["drift"]),
    ))?;
    let standing = number(&findings["standing"]);
    let rows = findings["list"].as_array().into_iter().flatten();
    let listed: Vec<SetReport> = rows
        .filter_map(|row| SetReport::deserialize(row).ok())
        .collect();
    let unread = status["unread"].as_str();
    if standing == 0 && unread.is_some() {
        out.print_line("no active findings, but that is not certain, for the reason below")?;
    } else if standing == 0 {
        out.print_line("no active findings")?;
    } else {
        let leaked = |set: &&SetReport| {
            let class = set.verdict.as_ref().and_then(|verdict| verdict.class);
            matches!(class, Some(Class::Leaked(_)))
        };
        out.print_line(&format!(
            "{}; {}",
            count_noun(standing, "active finding", "active findings"),
            finding_commands(listed.iter().filter(leaked).count(), "")
        ))?;
    }
    for set in listed {
        let verdict = set.verdict.as_ref().map_or("?", |it| it.text.as_str());
        out.print_line(&format!(
            "  {}  semid {}  {}  {verdict}",
            set.key,
            set.semid,
            owner_text(&set),
        ))?;
    }
    if let Some(unread) = unread {
        out.print_line(unread)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::output::testing::capture_output;

    #[test]
    fn where_there_is_nothing_to_remove_it_is_said_where_that_is() {
        assert_eq!(
            removal_text(false, Path::new("/sys/fs/bpf/mine")),
            "nothing to remove: no trace was left running in /sys/fs/bpf/mine"
        );
    }

    #[test]
    fn a_status_says_what_the_service_cannot_read() {
        let told = |status: Value| capture_output(None, |out| print_status(&status, out));
        let blind = told(json!({"unread": "not everything could be read: /proc; mount it"}));
        let end = "no active findings, but that is not certain, for the reason below\n\
                   not everything could be read: /proc; mount it\n";
        assert!(blind.ends_with(end), "{blind}");
        let old = told(json!({"unread": null}));
        assert!(old.ends_with("no active findings\n"), "{old}");
    }

    #[test]
    fn a_status_counts_cookies_as_list_does() {
        let told = |foreign: u64| {
            let status = json!({
                "totals": {"cookies": {"created": 60, "destroyed": 0, "live": 60}},
                "foreign_sets": foreign,
            });
            capture_output(None, |out| print_status(&status, out))
        };
        let mixed = told(1);
        assert!(mixed.contains(" 59 there now, 1 foreign set\n"), "{mixed}");
        let plain = told(0);
        assert!(plain.contains(" 60 there now\n"), "{plain}");
    }

    #[test]
    fn an_owner_that_is_not_known_has_no_name_and_no_number() {
        let of = |row: Value| owner_text(&SetReport::deserialize(row).unwrap());
        assert_eq!(of(json!({"owner": null})), "owner unknown");
        assert_eq!(of(json!({})), "owner unknown");
        assert_eq!(of(json!({"owner": {"pid": 7, "comm": ""}})), "process 7");
        let known =
            json!({"owner_known": "observed", "owner": {"pid": 7, "comm": "lvm", "ended": true}});
        assert_eq!(of(known), "lvm[7]+");
        let inferred = json!({"owner_known": "inferred", "owner": {"pid": 7, "comm": "lvm"}});
        assert_eq!(of(inferred), "lvm[7]?");
    }
}
