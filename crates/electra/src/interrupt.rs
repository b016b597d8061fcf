//! SIGINT and SIGTERM: the first asks the work to stop, the second ends the process.

use electra_train::interrupt::StopFlag;
use std::process::ExitCode;

/// Exit code of a run that was interrupted.
pub const INTERRUPTED: u8 = 130;

/// A flag that the signals set.
pub fn stop_on_signals() -> anyhow::Result<StopFlag> {
    let flag = StopFlag::new();
    let handle = flag.clone();
    ctrlc::set_handler(move || {
        if handle.request() > 1 {
            std::process::exit(INTERRUPTED.into());
        }
        tell!("stopping after the step under way (again to stop at once)");
    })?;
    Ok(flag)
}

/// The exit code of an interrupted run.
pub fn exit_code() -> ExitCode {
    ExitCode::from(INTERRUPTED)
}
