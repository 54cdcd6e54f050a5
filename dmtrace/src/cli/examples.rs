//! Examples of each verb, for `--help`.

pub(super) const WATCH_EXAMPLES: &str = "\
Examples:
  dmtrace watch                  cookies, until Ctrl-C
  dmtrace watch --all -d 10s     every semaphore, for ten seconds
  dmtrace watch --json | jq .    one JSON object per line";
/// The examples, and what the words in the lines mean.
pub(super) fn watch_help() -> String {
    format!("{WATCH_EXAMPLES}\n\n{}", super::legend::LEGEND)
}

pub(super) const LIST_EXAMPLES: &str = "\
Examples:
  dmtrace list                   cookies in all IPC namespaces
  dmtrace list --all             every semaphore set
  dmtrace list --state leaked -o key,semid,pid,cmdline --no-headers";
pub(super) const REPORT_EXAMPLES: &str = "\
Examples:
  dmtrace report                 from a running `dmtrace watch` or `record`, and a snapshot
  dmtrace report leak.dmt        from a recording; needs no root
  dmtrace report --by container
  dmtrace report --bug           program, package, rate: for a bug tracker
  dmtrace report --by stack      the calls that made the leaked cookies
  dmtrace report --since 7d      what dmtrace serve has found, and how often it leaks
  dmtrace report --since 7d --bug
  dmtrace report leak.dmt --flamegraph leak.svg";
pub(super) const EXPLAIN_EXAMPLES: &str = "\
Examples:
  dmtrace explain                the worst one: stuck first, then the leaks of who leaks most
  dmtrace explain 0x0d4d1234     this cookie; a semid will do, too
  dmtrace explain 0x0d4d1234 leak.dmt    from a recording; needs no root";
pub(super) const EXEC_EXAMPLES: &str = "\
Examples:
  dmtrace exec make check        exit code 1 if cookies were left, else that of make
  dmtrace exec --all ./test -v   every semaphore, not only cookies";
pub(super) const SERVE_EXAMPLES: &str = "\
Examples:
  dmtrace serve                  until SIGTERM; findings go to standard error, or the journal
  dmtrace serve --group adm      members of adm may ask how it is, too
  dmtrace serve --status         how the running service is, and what it has found
  dmtrace serve --search         it searches who holds older cookies, then the same
  dmtrace serve --keep           tracing continues while the service is restarted
  dmtrace serve --remove         ends that, once no service runs";
pub(super) const CLEAN_EXAMPLES: &str = "\
Examples:
  dmtrace clean                  show what would be removed, and why the rest is kept
  dmtrace clean --apply          remove it, after asking
  dmtrace clean --apply --yes --max 10 --older-than 10m
  dmtrace clean --plan FILE      write the plan down; later, exactly that:
  dmtrace clean --apply --plan FILE";

/// Exit codes, the same for every verb; part of `--help`.
pub(super) const EXIT_CODES: &str = "\
Exit codes:
  0  nothing found, or everything done
  1  findings; report and explain: also of what is gone, such as removed leaks
  2  usage
  3  environment or privilege
  4  incomplete data or undecided cookies: the answer is not certain
  5  clean: not everything planned was done";
