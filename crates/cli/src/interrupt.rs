//! Ctrl-C during a check: what is known so far is printed, as incomplete. A second one ends the program at once.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use firstdiff_compare::Check;

use crate::args::OutputFormat;
use crate::cmd::check::exit;
use crate::exit::Exit;
use crate::out;

/// The exit code of a program that SIGINT ends, as shells have it.
const ENDED: i32 = 130;

/// What an interrupt prints.
#[derive(Default)]
struct Known {
    check: Option<Check>,
    /// The whole result is being printed: there is nothing to add.
    whole: bool,
}

/// Waits for Ctrl-C from when it is made.
pub struct Interrupt(Arc<Mutex<Known>>);

impl Interrupt {
    /// The first interrupt prints in this format.
    pub fn new(format: OutputFormat) -> Interrupt {
        let known: Arc<Mutex<Known>> = Arc::default();
        let (shared, times) = (known.clone(), AtomicUsize::new(0));
        let handler = move || {
            if times.fetch_add(1, Ordering::SeqCst) > 0 {
                std::process::exit(ENDED);
            }
            let shared = shared.clone();
            // The handler returns, so that a second interrupt is heard while this one prints.
            std::thread::spawn(move || print(&shared, format));
        };
        // Where no handler can be set, an interrupt ends the program as it does without one.
        let _ = ctrlc::set_handler(handler);
        Interrupt(known)
    }

    /// What is known by now.
    pub fn know(&self, check: &Check) {
        let known = Check { complete: false, causes_complete: false, ..check.clone() };
        lock(&self.0).check = Some(known);
    }

    /// From now on the whole result is printed.
    pub fn finish(&self) {
        lock(&self.0).whole = true;
    }
}

fn lock(known: &Mutex<Known>) -> MutexGuard<'_, Known> {
    // What is known is replaced as a whole: a panic elsewhere leaves it good.
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

fn print(known: &Mutex<Known>, format: OutputFormat) {
    // Held to the end: the result is printed once, by whoever comes first.
    let known = lock(known);
    if known.whole {
        return;
    }
    let printed = match (&known.check, format) {
        (Some(check), OutputFormat::Text) => out::text(&firstdiff_report::check_text(check)),
        (Some(check), OutputFormat::Json) => out::json(&firstdiff_report::json::check(check)),
        (None, OutputFormat::Text) => out::text(firstdiff_report::interrupted()),
        (None, OutputFormat::Json) => out::json(&firstdiff_report::json::interrupted()),
    };
    let code = match (&known.check, printed) {
        (Some(check), Ok(())) => exit(check.verdict),
        _ => Exit::Error,
    };
    std::process::exit(code as i32);
}
