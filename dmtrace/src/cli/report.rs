//! `dmtrace report`: who leaks, ranked; who only suffers; how long until nothing works.

use std::{collections::BTreeMap, process::ExitCode, time::Duration};

use anyhow::Result;
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    args::{By, Report},
    case::Case,
    failure::exit,
    list,
    row::{Row, confidence},
    stacks,
};
use crate::{
    event::recording::Start,
    host::container::Workload,
    ids::IpcNs,
    ledger::{ImageId, Process},
    output::{Out, json, time, time::Clock},
    probe::Environment,
    stack::CallSite,
};

/// Leaks of one process, executable or container.
#[derive(Default, Serialize)]
struct Group {
    /// What they have in common, for people.
    name: String,
    /// Leaked cookies.
    leaked: usize,
    /// Of these, seen and not inferred.
    observed: usize,
    /// Age of the oldest, seconds.
    oldest_seconds: Option<u64>,
    /// What happened to them, with counts.
    how: BTreeMap<String, usize>,
    /// The first few, by key.
    examples: Vec<String>,
    /// Devices that they were used for, the first few.
    devices: Vec<String>,
    /// Details of one process behind it.
    #[serde(skip_serializing_if = "Option::is_none")]
    process: Option<Value>,
    /// The calls.
    #[serde(skip_serializing_if = "Option::is_none")]
    call_site: Option<Value>,
    #[serde(skip)]
    lines: Vec<String>,
}

/// Somebody who got ENOSPC.
#[derive(Serialize)]
struct Victim {
    pid: u32,
    comm: String,
    command: Option<String>,
    failed: u64,
    /// It leaks as well.
    also_culprit: bool,
}

/// Everything that is reported.
struct Findings<'a> {
    leaked: Vec<&'a Row<'a>>,
    stuck: Vec<&'a Row<'a>>,
    undecided: usize,
    victims: Vec<Victim>,
    exhaustion: Vec<Exhaustion>,
}

/// Use of a namespace's limit.
#[derive(Serialize)]
struct Exhaustion {
    ipc_ns: IpcNs,
    sets: usize,
    limit: u32,
    leaked: usize,
    /// Leaks an hour since tracing began.
    leaks_per_hour: Option<f64>,
    /// Seconds until the limit is reached at that rate.
    exhausted_in_seconds: Option<u64>,
}

/// Runs the verb.
pub fn run(args: &Report, as_json: bool, out: &mut Out) -> Result<ExitCode> {
    let (case, start) = match &args.file {
        Some(path) => {
            let (case, start) = Case::of_recording(path)?;
            (case, Some(start))
        }
        None => (Case::of_host(None, true)?, None),
    };
    let rows: Vec<Row<'_>> = list::rows(&case, false)
        .into_iter()
        .filter(|row| args.filters.pass(&row.candidate()))
        .collect();
    let findings = find(&case, &rows, args);
    let groups: Vec<(By, Vec<Group>)> = [By::Process, By::Executable, By::Container]
        .into_iter()
        .chain(args.by.filter(|by| *by == By::Stack))
        .filter(|by| args.by.is_none_or(|wanted| wanted == *by))
        .map(|by| (by, group(&findings.leaked, by, args.top)))
        .collect();
    if args.folded || args.flamegraph.is_some() {
        let lines = stacks::folded(&findings.leaked);
        if let Some(path) = &args.flamegraph {
            stacks::flame_graph(&lines, path)?;
        }
        for line in lines.iter().filter(|_| args.folded) {
            out.line(line)?;
        }
    }
    if args.folded {
        // Nothing else: it is for another program.
    } else if as_json {
        out.json(&object(&case, start.as_ref(), &findings, &groups))?;
    } else {
        print(&case, start.as_ref(), &findings, &groups, out)?;
        for note in &case.notes {
            eprintln!("dmtrace: {note}");
        }
    }
    Ok(
        if !findings.leaked.is_empty() || !findings.stuck.is_empty() || !findings.victims.is_empty()
        {
            exit::findings()
        } else if case.incomplete {
            exit::incomplete()
        } else {
            exit::CLEAN
        },
    )
}

fn find<'a>(case: &'a Case, rows: &'a [Row<'a>], args: &Report) -> Findings<'a> {
    let of = |state: &str| {
        rows.iter()
            .filter(|row| row.state() == state)
            .collect::<Vec<_>>()
    };
    let leaked = of("leaked");
    let culprits: Vec<ImageId> = leaked
        .iter()
        .filter_map(|row| row.semaphore.creator.image())
        .collect();
    let mut victims: Vec<Victim> = case
        .ledger
        .processes()
        .filter(|process| process.tally.starved > 0 && wanted(args, process))
        .map(|process| Victim {
            pid: process.image_id.id.tgid,
            comm: process.name.to_string(),
            command: process.image.as_ref().map(|image| image.command_line()),
            failed: process.tally.starved,
            also_culprit: culprits.contains(&process.image_id),
        })
        .collect();
    victims.sort_by_key(|victim| (victim.also_culprit, std::cmp::Reverse(victim.failed)));
    Findings {
        exhaustion: exhaustion(case, &leaked),
        stuck: of("stuck"),
        undecided: of("unknown").len(),
        leaked,
        victims,
    }
}

fn wanted(args: &Report, process: &Process) -> bool {
    args.filters
        .pid
        .is_none_or(|pid| pid == process.image_id.id.tgid)
        && args
            .filters
            .comm
            .as_deref()
            .is_none_or(|comm| comm == process.name.as_str())
}

fn exhaustion(case: &Case, leaked: &[&Row<'_>]) -> Vec<Exhaustion> {
    let traced = case.since.map(|since| case.facts.now.since(since));
    case.snapshot
        .namespaces
        .iter()
        .filter(|ns| ns.limits.semmni > 0)
        .map(|ns| {
            let here = leaked.iter().filter(|row| row.semaphore.id.ns == ns.ns);
            let fresh = here
                .clone()
                .filter(|row| row.semaphore.created >= case.since)
                .count();
            // A rate over less than a minute says more about the minute than about the host.
            let rate = traced
                .filter(|traced| fresh > 0 && *traced >= Duration::from_secs(60))
                .map(|traced| fresh as f64 * 3600.0 / traced.as_secs_f64());
            let free = (ns.limits.semmni as usize).saturating_sub(ns.sets.len());
            Exhaustion {
                ipc_ns: ns.ns,
                sets: ns.sets.len(),
                limit: ns.limits.semmni,
                leaked: here.count(),
                leaks_per_hour: rate,
                exhausted_in_seconds: rate.map(|rate| (free as f64 / rate * 3600.0) as u64),
            }
        })
        .filter(|it| {
            it.ipc_ns == IpcNs::HOST || it.leaked > 0 || it.sets * 5 >= it.limit as usize * 4
        })
        .collect()
}

fn group(leaked: &[&Row<'_>], by: By, top: usize) -> Vec<Group> {
    let mut groups: BTreeMap<String, Group> = BTreeMap::new();
    for row in leaked {
        let key = match by {
            By::Process => row
                .pid()
                .map_or_else(|| "unknown".to_owned(), |_| row.owner()),
            By::Executable => executable(row),
            By::Container => match row.image {
                Some(image) => match Workload::from_cgroup(&image.cgroup).to_string().as_str() {
                    "-" => format!("no container (cgroup {})", image.cgroup),
                    workload => workload.to_owned(),
                },
                None => "unknown".to_owned(),
            },
            By::Stack => row
                .call_site()
                .map_or_else(|| "unknown".to_owned(), CallSite::line),
        };
        let group = groups.entry(key.clone()).or_default();
        group.name = key;
        group.leaked += 1;
        if let Some(verdict) = &row.verdict {
            group.observed += usize::from(confidence(verdict) == "observed");
            *group
                .how
                .entry(how(&verdict.class.to_string()))
                .or_default() += 1;
        }
        group.oldest_seconds = group.oldest_seconds.max(row.age.map(|age| age.as_secs()));
        if group.examples.len() < 3 {
            group
                .examples
                .push(format!("{:#010x}", row.semaphore.key.0));
        }
        for device in row.devices() {
            let label = device.full();
            if group.devices.len() < 5 && !group.devices.contains(&label) {
                group.devices.push(label);
            }
        }
        if by == By::Process && group.process.is_none() {
            group.process = row.image.map(|image| json!(image));
            group.lines = describe(row);
        }
        if by == By::Stack && group.call_site.is_none() {
            group.call_site = row.call_site().map(CallSite::json);
            group.lines = row.call_site_lines();
        }
    }
    let mut ranked: Vec<Group> = groups.into_values().collect();
    ranked.sort_by(|a, b| b.leaked.cmp(&a.leaked).then_with(|| a.name.cmp(&b.name)));
    ranked.truncate(top);
    ranked
}

fn executable(row: &Row<'_>) -> String {
    match row.image.and_then(|image| image.exe.clone()) {
        Some(exe) => exe,
        None if row.comm().is_empty() => "unknown".to_owned(),
        None => format!("{} (path unknown)", row.comm()),
    }
}

fn how(text: &str) -> String {
    text.strip_prefix("leaked: ").unwrap_or(text).to_owned()
}

/// What a person needs to find the process again, or its like.
fn describe(row: &Row<'_>) -> Vec<String> {
    let Some(image) = row.image else {
        return Vec::new();
    };
    let mut lines = vec![format!("command   {}", image.command_line())];
    if let Some(exe) = &image.exe {
        let deleted = if image.exe_deleted { " (deleted)" } else { "" };
        lines.push(format!("program   {exe}{deleted}"));
    }
    let workload = row.workload().to_string();
    let workload = if workload == "-" {
        image.cgroup.clone()
    } else {
        workload
    };
    lines.push(format!(
        "runs as   uid {}, pid {} in its namespace, in {workload}",
        image.uid, image.ns_pid
    ));
    let parents: Vec<String> = image
        .parents
        .iter()
        .map(|parent| format!("{}[{}]", parent.comm, parent.id.tgid))
        .collect();
    if !parents.is_empty() {
        lines.push(format!("below     {}", parents.join(" < ")));
    }
    if let Some(site) = row.call_site() {
        lines.push(format!("call site {}", site.line()));
    }
    lines
}

fn print(
    case: &Case,
    start: Option<&Start>,
    findings: &Findings<'_>,
    groups: &[(By, Vec<Group>)],
    out: &mut Out,
) -> Result<()> {
    head(case, start, out)?;
    if findings.leaked.is_empty() {
        out.line(if case.incomplete {
            "No leaked cookie is known, but the data is incomplete: not certain."
        } else if findings.undecided > 0 {
            "No cookie is known to be leaked."
        } else {
            "No cookie is leaked."
        })?;
    }
    for (by, groups) in groups {
        if !groups.is_empty() {
            out.line(&format!("LEAKED COOKIES BY {}", title(*by)))?;
            for group in groups {
                print_group(group, out)?;
            }
            out.line("")?;
        }
    }
    if !findings.stuck.is_empty() {
        out.line("STUCK WAITERS")?;
        for row in &findings.stuck {
            let text = row
                .verdict
                .as_ref()
                .map(|verdict| verdict.class.to_string())
                .unwrap_or_default();
            let device = match row.device() {
                device if device.is_empty() => device,
                device => format!("  {device}"),
            };
            out.line(&format!(
                "  {}  semid {}  {}{device}  {text}",
                row.semaphore.key,
                row.semaphore.id.semid,
                row.owner()
            ))?;
        }
        out.line("")?;
    }
    if !findings.victims.is_empty() {
        out.line("VICTIMS: could not create a semaphore (ENOSPC)")?;
        for victim in &findings.victims {
            let also = if victim.also_culprit {
                "  (leaks as well, see above)"
            } else {
                ""
            };
            out.line(&format!(
                "  {:>6}  {}[{}]{also}",
                victim.failed, victim.comm, victim.pid
            ))?;
            if let Some(command) = &victim.command {
                out.line(&format!("          command   {command}"))?;
            }
        }
        out.line("")?;
    }
    for it in &findings.exhaustion {
        let rate = match (it.leaks_per_hour, it.exhausted_in_seconds) {
            (Some(rate), Some(seconds)) => format!(
                "; {rate:.1} leaks an hour: full in {}",
                time::age(Duration::from_secs(seconds))
            ),
            _ => String::new(),
        };
        out.line(&format!(
            "IPC namespace {}: {} of {} sets in use, {} leaked{rate}",
            it.ipc_ns, it.sets, it.limit, it.leaked
        ))?;
    }
    if findings.undecided > 0 {
        out.line(&format!(
            "{} cookies could not be decided: dmtrace list --state unknown",
            findings.undecided
        ))?;
    }
    if !findings.leaked.is_empty() && start.is_none() {
        out.line("Remove exactly the leaked ones: dmtrace clean")?;
    }
    Ok(())
}

fn print_group(group: &Group, out: &mut Out) -> Result<()> {
    let age = group.oldest_seconds.map_or_else(String::new, |seconds| {
        format!(", oldest {}", time::age(Duration::from_secs(seconds)))
    });
    out.line(&format!("  {:>6}  {}{age}", group.leaked, group.name))?;
    for (how, count) in &group.how {
        let times = if group.how.len() > 1 {
            format!("{count} x ")
        } else {
            String::new()
        };
        out.line(&format!("          {times}{how}"))?;
    }
    if group.observed < group.leaked {
        out.line(&format!(
            "          {} of {} inferred, not seen",
            group.leaked - group.observed,
            group.leaked
        ))?;
    }
    if !group.devices.is_empty() {
        out.line(&format!("          devices   {}", group.devices.join(", ")))?;
    }
    for line in &group.lines {
        out.line(&format!("          {line}"))?;
    }
    Ok(())
}

fn head(case: &Case, start: Option<&Start>, out: &mut Out) -> Result<()> {
    let kernel = start.map_or_else(|| Environment::read().kernel, |start| start.kernel.clone());
    let clock = match start {
        Some(start) => Clock::at(start.began, start.wall),
        None => Clock::now(),
    };
    let traced = case.since.map_or_else(
        || "no trace: creators are unknown; run dmtrace watch or record".to_owned(),
        |since| {
            format!(
                "traced {} since {}",
                time::age(case.facts.now.since(since)),
                clock.rfc3339(since)
            )
        },
    );
    out.line(&format!(
        "dmtrace {} report, kernel {kernel}",
        env!("CARGO_PKG_VERSION")
    ))?;
    out.line(&traced)?;
    Ok(out.line("")?)
}

const fn title(by: By) -> &'static str {
    match by {
        By::Process => "PROCESS",
        By::Executable => "EXECUTABLE",
        By::Container => "CONTAINER",
        By::Stack => "CALL SITE",
    }
}

fn object(
    case: &Case,
    start: Option<&Start>,
    findings: &Findings<'_>,
    groups: &[(By, Vec<Group>)],
) -> Value {
    let by = |wanted: By| {
        groups
            .iter()
            .find(|(by, _)| *by == wanted)
            .map(|(_, groups)| groups)
    };
    json::envelope(
        "report",
        &json!({
            "kernel": start.map_or_else(|| Environment::read().kernel, |start| start.kernel.clone()),
            "recording": start,
            "complete": !case.incomplete,
            "notes": case.notes,
            "traced_since_boot_ns": case.since,
            "leaked": findings.leaked.iter().map(|row| row.json()).collect::<Vec<_>>(),
            "stuck": findings.stuck.iter().map(|row| row.json()).collect::<Vec<_>>(),
            "undecided": findings.undecided,
            "by_process": by(By::Process),
            "by_executable": by(By::Executable),
            "by_container": by(By::Container),
            "by_stack": by(By::Stack),
            "victims": findings.victims,
            "namespaces": findings.exhaustion,
            "totals": case.ledger.totals(),
        }),
    )
}
