//! Where fanfold listens, and whether that is safe; the certificate; the log's filter.

use std::net::SocketAddr;

use super::Check;

impl Check<'_> {
    pub(super) fn listeners(&mut self) {
        let proxy =
            self.address(&["listen"], &self.file.listen, self.flags.listen.is_some().then_some("--listen"));
        let flag = self.flags.admin_listen.is_some().then_some("--admin-listen");
        let admin = self.address(&["admin", "listen"], &self.file.admin.listen, flag);
        if let Some(proxy) = proxy {
            self.public_proxy(proxy);
        }
        if let Some(admin) = admin.filter(|a| !a.ip().is_loopback()) {
            self.warn(
                &["admin", "listen"],
                format!(
                    "the admin listener at {admin} asks for no key: whoever reaches it sees metrics and runs"
                ),
                "keep it on 127.0.0.1, or let only Prometheus and your operators reach it",
            );
        }
        if let (Some(proxy), Some(admin)) = (proxy, admin)
            && proxy == admin
            && proxy.port() != 0
        {
            let message = format!("the proxy and the admin side cannot both listen on {proxy}");
            self.wrong(&["admin", "listen"], message, "give one of them another port");
        }
        self.certificate();
        self.log();
    }

    fn address(&mut self, path: &[&str], text: &str, flag: Option<&str>) -> Option<SocketAddr> {
        if let Ok(address) = text.parse() {
            return Some(address);
        }
        let meant = match text.rsplit_once(':') {
            Some(("" | "*", port)) => format!("0.0.0.0:{port}"),
            Some(("localhost", port)) => format!("127.0.0.1:{port}"),
            Some(_) | None => "127.0.0.1:4100 or [::1]:4100".into(),
        };
        let fix = format!("write an IP address and a port, such as {meant}");
        match flag {
            Some(flag) => {
                let problem = super::Problem::new(format!("`{flag} {text}` is not an address to listen on"));
                self.problems.push(problem.fix(fix));
            }
            None => self.wrong(path, format!("`{text}` is not an address to listen on"), fix),
        }
        None
    }

    fn public_proxy(&mut self, proxy: SocketAddr) {
        let keys =
            self.file.teams.values().any(|team| !team.keys.is_empty()) || self.shape.damaged(&["teams"]);
        if proxy.ip().is_loopback() || keys {
            return;
        }
        match self.flags.insecure_no_auth {
            false => self.wrong(
                &["listen"],
                format!("without teams and keys, everybody who reaches {proxy} could use your upstream's key"),
                "add `teams:` with keys (`fanfold keys new` makes one), listen on 127.0.0.1, or start with --insecure-no-auth",
            ),
            true => self.warn(
                &["listen"],
                format!("everybody who reaches {proxy} can use your upstream's key (--insecure-no-auth)"),
                "add `teams:` with keys (`fanfold keys new` makes one)",
            ),
        }
    }

    fn certificate(&mut self) {
        let Some(tls) = &self.file.tls else { return };
        for (key, path) in [("cert", &tls.cert), ("key", &tls.key)] {
            self.readable(&["tls", key], path);
        }
    }

    /// A file that will be needed later has to be readable now.
    pub(super) fn readable(&mut self, at: &[&str], path: &str) {
        if let Err(why) = std::fs::File::open(path).and_then(|mut f| std::io::Read::read(&mut f, &mut [0; 1]))
        {
            let message = format!("the file `{path}` cannot be read: {why}");
            self.wrong(at, message, "check the path and the permissions");
        }
    }

    fn log(&mut self) {
        if tracing_subscriber::EnvFilter::try_new(&self.file.log.level).is_err() {
            let message = format!("`{}` is not a log filter", self.file.log.level);
            self.wrong(
                &["log", "level"],
                message,
                "write error, warn, info, debug, trace, or such as fanfold=debug",
            );
        }
    }
}
