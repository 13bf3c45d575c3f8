//! A list with `--json` that is printed as it arrives, so that the list of a large account is never
//! in memory as a whole.

use std::collections::HashSet;
use std::io::{self, BufWriter, Write};
use std::process::ExitCode;
use std::thread::JoinHandle;

use async_channel::{Receiver, Sender};
use serde_json::{Value, json};

use super::output::{CommandOutput, OutputForm};
use super::screen::Stdout;
use super::signals::Heard;
use super::{exit, printable};
use crate::error::{Error, Result};

/// Maximum items that wait to be printed, which bounds the memory if the reader of stdout is slow.
/// Any number above a few will do.
const WAITING_MAX: usize = 64;

/// An item of the list with its identity: if the answer breaks off it is requested again, but each
/// item is printed once.
pub(super) type Item = ([u8; 16], Value);

/// The object of an [`OutputForm`] whose key `key` is such a list.
#[derive(Debug)]
pub(super) struct JsonList {
    form: OutputForm,
    key: &'static str,
    items: Sender<Item>,
    printer: JoinHandle<io::Result<Option<Out>>>,
}

type Out = BufWriter<Stdout>;

impl JsonList {
    /// Begins a list. Nothing is printed before the first item.
    pub(super) fn start(form: OutputForm, key: &'static str) -> Self {
        let (items, waiting) = async_channel::bounded(WAITING_MAX);
        // A terminal or a pipe may block for any time.
        let printer = std::thread::spawn(move || print(key, &waiting));
        Self {
            form,
            key,
            items,
            printer,
        }
    }

    /// The sender for items. If nothing receives them any more, they are dropped.
    pub(super) fn items(&self) -> Sender<Item> {
        self.items.clone()
    }

    /// Ends the object, with the error if there is one, and returns the exit code.
    pub(super) fn finish(self, result: Result<()>, heard: &Heard) -> ExitCode {
        self.items.close();
        let printed = self.printer.join();
        let printed = printed.unwrap_or_else(|_| Err(io::Error::other("the printer panicked")));
        let printed = match printed {
            // There was no item, so the object is printed as for any other command.
            Ok(None) => {
                let empty = json!({ self.key: [] });
                let answer = result.map(|()| CommandOutput::new(String::new(), empty));
                return self.form.finish(true, heard, answer);
            }
            Ok(Some(mut out)) => {
                let end = end(self.form, result.as_ref().err(), heard);
                out.write_all(end.as_bytes()).and_then(|()| out.flush())
            }
            Err(cause) => Err(cause),
        };
        match result.and_then(|()| printed.map_err(exit::cannot_print)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                let code = heard.exit_code(error.kind());
                exit::failed(self.form.program, &error, code)
            }
        }
    }
}

/// Prints items as they arrive, each once. Returns `None` if there was none.
fn print(key: &str, items: &Receiver<Item>) -> io::Result<Option<Out>> {
    let mut seen = HashSet::new();
    let mut out = None;
    while let Ok((id, item)) = items.recv_blocking() {
        if !seen.insert(id) {
            continue;
        }
        let before = match &out {
            None => format!("{{\n  {}: [\n    ", json!(key)),
            Some(_) => ",\n    ".to_owned(),
        };
        let out = match &mut out {
            Some(out) => out,
            none => none.insert(BufWriter::new(Stdout::open()?)),
        };
        out.write_all(before.as_bytes())?;
        let item = printable::safe_json(&format!("{item:#}"));
        out.write_all(item.replace('\n', "\n    ").as_bytes())?;
    }
    Ok(out)
}

/// The text after the last item.
fn end(form: OutputForm, error: Option<&Error>, heard: &Heard) -> String {
    let error = error.map(|error| (error, heard.exit_code(error.kind())));
    let rest = form.print(json!({}), error);
    // The keys of an object without others, without its opening brace.
    format!("\n  ],{}", rest.strip_prefix('{').unwrap_or(&rest))
}
