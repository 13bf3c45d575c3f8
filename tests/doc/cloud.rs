// What the examples in the documentation hide: a server in a directory of its own, and a client of it.

struct Cloud {
    client: openhosting::api::Client,
    endpoint: String,
    work: tempfile::TempDir,
}

impl Cloud {
    async fn start() -> Result<Self, Box<dyn std::error::Error>> {
        let work = tempfile::tempdir()?;
        let drives = work.path().join("drives");
        std::fs::create_dir(&drives)?;
        let server = openhosting::server::Server::open(openhosting::server::Config::new(drives))?;
        let credentials = server.credentials().clone();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let endpoint = format!("http://{}/", listener.local_addr()?);
        tokio::spawn(server.run(listener, std::future::pending()));
        let config = openhosting::api::ClientConfig::default();
        let client = openhosting::api::Client::new(endpoint.parse()?, &credentials, &config)?;
        Ok(Self {
            client,
            endpoint,
            work,
        })
    }

    /// A file with 1 MiB of data.
    fn image(&self) -> std::io::Result<std::path::PathBuf> {
        let path = self.work.path().join("disk.img");
        std::fs::write(&path, vec![7; 1 << 20])?;
        Ok(path)
    }
}
