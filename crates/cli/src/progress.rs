//! Progress bars on standard error, for work that takes more than a second.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A bar that stays invisible for the first second.
pub struct Progress {
    started: Instant,
    what: &'static str,
    bar: Mutex<Option<ProgressBar>>,
}

const PATIENCE: Duration = Duration::from_secs(1);

impl Progress {
    /// A bar for some work.
    pub fn new(what: &'static str) -> Progress {
        Progress { started: Instant::now(), what, bar: Mutex::new(None) }
    }

    /// So much is done.
    pub fn report(&self, done: usize, total: usize) {
        if self.started.elapsed() < PATIENCE {
            return;
        }
        let Ok(mut bar) = self.bar.lock() else { return };
        let bar = bar.get_or_insert_with(|| {
            let style = ProgressStyle::with_template("{msg} [{bar:30}] {percent}%, about {eta} left")
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            bar.with_style(style).with_message(self.what)
        });
        bar.set_length(total as u64);
        bar.set_position(done as u64);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Ok(bar) = self.bar.lock()
            && let Some(bar) = bar.as_ref()
        {
            bar.finish_and_clear();
        }
    }
}
