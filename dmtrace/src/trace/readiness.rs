//! What the loop of a trace waits for.

use std::io;

use anyhow::{Context as _, Result};
use tokio::{
    signal::unix::Signal,
    task::yield_now,
    time::{Instant, sleep_until},
};

use super::{
    books::{BooksQuestions, BooksSocket},
    session::{InputKind, Pace, Session},
};

/// What there is to do.
pub(crate) enum Readiness {
    Input(InputKind),
    /// It is time for a look at the whole.
    SurveyDue,
    /// Another command wants to judge by these books: that takes a look at the whole, too.
    BooksAsked(BooksQuestions),
}

impl Readiness {
    /// Whether there is a look at the whole to be done.
    pub(crate) const fn needs_survey(&self) -> bool {
        matches!(self, Self::SurveyDue | Self::BooksAsked(_))
    }
}

pub(super) async fn wait_child(
    child: &mut Option<&mut tokio::process::Child>,
) -> io::Result<std::process::ExitStatus> {
    match child {
        Some(child) => child.wait().await,
        None => std::future::pending().await,
    }
}

/// Waits until there is something to do.
pub(super) async fn wait_ready(
    pace: &Pace,
    backlog: bool,
    session: &mut Session,
    books: &mut Option<BooksSocket>,
) -> Result<Readiness> {
    // Where something is ready all the time, nothing else lets the runtime see signals and timers.
    yield_now().await;
    let next = pace.next_survey().map(Instant::from_std);
    tokio::select! {
        biased;
        questions = wait_questions(books) => Ok(Readiness::BooksAsked(questions)),
        () = wait_until(next) => Ok(Readiness::SurveyDue),
        () = std::future::ready(()), if backlog => Ok(Readiness::Input(InputKind::Messages)),
        news = session.wait_ready() => {
            news.map(Readiness::Input).context("cannot poll the ring buffer")
        }
    }
}

async fn wait_questions(books: &mut Option<BooksSocket>) -> BooksQuestions {
    match books {
        Some(books) => books.next_questions().await,
        None => std::future::pending().await,
    }
}

pub(super) async fn wait_end(
    interrupt: &mut Signal,
    terminate: &mut Signal,
    follow_interrupt: bool,
) {
    tokio::select! {
        _ = interrupt.recv(), if follow_interrupt => {}
        _ = terminate.recv() => {}
    }
}

pub(super) async fn wait_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
