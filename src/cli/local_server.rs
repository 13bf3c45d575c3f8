//! `--local DIR`: our own server inside this process, on a loopback port. The transfer uses a real
//! socket, as for any endpoint.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::api::{Client, ClientConfig, Route};
use crate::commands::Commands;
use crate::error::{Error, ErrorKind, Result};
use crate::server::{Config, Server};
use crate::transfer::blocking;

/// A server inside this process.
#[derive(Debug)]
pub(super) struct Local {
    stop: oneshot::Sender<()>,
    served: JoinHandle<Result<()>>,
}

impl Local {
    /// Serves `directory`, and creates a client of its first user.
    pub(super) async fn start(directory: &Path, config: &ClientConfig) -> Result<(Self, Client)> {
        let server_config = Config {
            has_page: false,
            ..Config::new(directory)
        };
        // Opening reads the disk.
        let server = blocking(move || Server::open(server_config)).await?;
        let any_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let cannot =
            |cause| Error::new(ErrorKind::Local, "Cannot listen on 127.0.0.1").because(cause);
        let listener = TcpListener::bind(any_port).await.map_err(cannot)?;
        let address = listener.local_addr().map_err(cannot)?;
        let endpoint = format!("http://{address}/").parse()?;
        let route = Route {
            commands: Commands::of_directory(directory),
            ..config.route.clone()
        };
        let config = ClientConfig {
            route,
            ..config.clone()
        };
        let client = Client::new(endpoint, server.credentials(), &config)?;
        let (stop, stopped) = oneshot::channel();
        let served = tokio::spawn(server.run(listener, async move {
            // Dropping the sender stops the server as well.
            let _ = stopped.await;
        }));
        Ok((Self { stop, served }, client))
    }

    /// Stops it and waits until it has stored everything.
    pub(super) async fn stop(self) {
        let _ = self.stop.send(());
        // What was confirmed is already on the drive; only counters are stored now.
        let _ = self.served.await;
    }
}
