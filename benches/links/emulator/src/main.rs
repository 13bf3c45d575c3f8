//! Passes packets between two TUN devices like a link with a limited rate, a delay, random loss and
//! a queue.
//!
//!     emulator RATE_MBIT DELAY_MS LOSS_PERCENT QUEUE_BYTES SEED  <NEAR >FAR 2<>CONTROL
//!
//! `link.py` opens the devices and passes them as stdin and stdout, because attaching
//! to a TUN device is a call for which Rust needs unsafe code or a dependency. Stderr is
//! a socket for commands, one a line; each is answered by one line:
//!
//!     hole        drop every packet from now on             -> ok
//!     through     carry packets again                       -> ok
//!     rate MBIT   change the rate of both ways              -> ok
//!     counts      the counters of both ways so far          -> a JSON object
//!
//! The program ends when the socket closes.

mod way;

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use way::{Settings, Way};

fn main() -> io::Result<()> {
    let control = UnixStream::from(own(io::stderr())?);
    let settings = match Settings::parse(std::env::args().skip(1)) {
        Ok(settings) => settings,
        Err(why) => return writeln!(&control, "error {why}"),
    };
    let (near, far) = (
        File::from(own(io::stdin())?),
        File::from(own(io::stdout())?),
    );
    let up = Way::start(near.try_clone()?, far.try_clone()?, settings, settings.seed);
    let down = Way::start(far, near, settings, !settings.seed);
    writeln!(&control, "ready")?;
    for line in BufReader::new(control.try_clone()?).lines() {
        writeln!(&control, "{}", obey(&line?, &up, &down))?;
    }
    Ok(())
}

/// A second handle on one of the standard streams.
fn own(stream: impl AsFd) -> io::Result<OwnedFd> {
    stream.as_fd().try_clone_to_owned()
}

fn obey(line: &str, up: &Arc<Way>, down: &Arc<Way>) -> String {
    match line.split_once(' ').unwrap_or((line, "")) {
        ("hole", "") => [up, down].map(|way| way.set_hole(true)),
        ("through", "") => [up, down].map(|way| way.set_hole(false)),
        ("rate", mbit) => match way::positive(mbit) {
            Ok(mbit) => [up, down].map(|way| way.set_rate(mbit)),
            Err(why) => return format!("error {why}"),
        },
        ("counts", "") => {
            return format!("{{\"up\": {}, \"down\": {}}}", up.counts(), down.counts());
        }
        _ => return format!("error unknown command {line:?}"),
    };
    "ok".to_owned()
}
