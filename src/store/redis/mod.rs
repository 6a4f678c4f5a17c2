//! The store in a Redis or Valkey that all replicas share.
//!
//! Every operation is one script, so it happens whole or not at all, whatever becomes of the
//! replica that asked. Times are the server's: replicas need not agree on the hour. Everything
//! has an expiry, the indexes too, so a namespace nobody uses any more empties by itself.
//!
//! Quotas, asked for by every request, have a connection of their own: large values on the other
//! one are not in their way. Each is a [`Link`]: while it is down, operations fail at once.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use redis::aio::MultiplexedConnection;
use redis::{Client, IntoConnectionInfo, RedisResult, Script, ScriptInvocation, TlsCertificates};
use secrecy::{ExposeSecret, SecretString};

use self::keys::{Family, Keys, digest, member};
use self::link::Link;
use self::scripts::Scripts;
use super::memory::{Deed, Memory, millis};
use super::meter::{Charge, Level, Rule, Taken, standing};
use super::settings::{OnError, Shared};
use super::{Bounds, Capacity, Claim, Key, MOST_PER_NAME, OVERHEAD, Record, StoreError, Version};
use crate::telemetry::{Telemetry, metrics};
use crate::units::Secret;

mod keys;
mod link;
mod scripts;

pub use self::link::Health;
pub use self::scripts::BUCKET;

/// The most bytes of parked results that are looked up for one request.
const MOST_FOUND: usize = 64 * 1024 * 1024;
/// How long a budget is remembered after its period: another replica's clock may be late.
const AFTER_PERIOD: Duration = Duration::from_secs(3600);

/// A shared store.
#[derive(Debug)]
pub struct Redis {
    quotas: Link,
    values: Link,
    scripts: Scripts,
    keys: Keys,
    capacity: Capacity,
    on_error: OnError,
    /// Counts quotas while the server is down.
    local: Memory,
    telemetry: Telemetry,
}

/// Why a shared store cannot be used as configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unusable {
    /// The setting below `store:`.
    pub setting: &'static str,
    /// What is wrong, for the operator.
    pub message: String,
}

/// One operation with the server, as metrics call it.
#[derive(Debug, Clone, Copy)]
enum Operation {
    Keep,
    Find,
    Claim,
    Read,
    Replace,
    Remove,
    Charge,
}

impl Operation {
    const fn word(self) -> &'static str {
        match self {
            Self::Keep => "keep",
            Self::Find => "find",
            Self::Claim => "claim",
            Self::Read => "read",
            Self::Replace => "replace",
            Self::Remove => "remove",
            Self::Charge => "charge",
        }
    }
}

impl Redis {
    /// Prepares the connections; [`connect`](Self::connect) makes them.
    pub(super) fn new(
        settings: &Shared,
        open: impl Fn(&Secret) -> Result<SecretString, String>,
        capacity: Capacity,
        telemetry: Telemetry,
    ) -> Result<Self, Unusable> {
        let client = client(settings, open)?;
        let link = || Link::new(client.clone(), settings.timeout.0);
        Ok(Self {
            quotas: link(),
            values: link(),
            scripts: Scripts::new(),
            keys: Keys::new(&settings.namespace.0),
            capacity,
            on_error: settings.on_error,
            local: Memory::new(&capacity),
            telemetry,
        })
    }

    /// Tries once to connect.
    pub(super) async fn connect(&self) {
        tokio::join!(self.quotas.connect(), self.values.connect());
        self.telemetry.gauge(metrics::STORE_UP, &[]).set(f64::from(u8::from(self.health() == Health::Up)));
    }

    /// Keeps the connections, and tells when the store goes down or is there again.
    pub(super) async fn keep_up(&self, mut tell: impl FnMut(&Health)) {
        let up = self.telemetry.gauge(metrics::STORE_UP, &[]);
        let (mut quotas, mut values) = (self.quotas.changes(), self.values.changes());
        let watch = async {
            let mut before = None;
            loop {
                let health = self.health();
                if before.as_ref() != Some(&health) {
                    up.set(f64::from(u8::from(health == Health::Up)));
                    tell(&health);
                    before = Some(health);
                }
                // The links live as long as this, so neither fails.
                let _ = tokio::select! {
                    changed = quotas.changed() => changed,
                    changed = values.changed() => changed,
                };
            }
        };
        tokio::join!(self.quotas.keep_up(), self.values.keep_up(), watch);
    }

    fn health(&self) -> Health {
        match self.quotas.health() {
            Health::Up => self.values.health(),
            down @ Health::Down(_) => down,
        }
    }

    pub(super) fn sweep(&self) {
        self.local.sweep();
    }

    pub(super) async fn keep(&self, team: &str, name: &str, value: &Bytes) -> Result<(), StoreError> {
        let bounds = self.capacity.parked;
        let size = fitting(name, value, &bounds)?;
        let family = self.keys.shelf(team);
        let mut call = indexed(&self.scripts.keep, &family);
        call.key(&family.names).arg(digest(name)).arg(&value[..]).arg(size).arg(millis(bounds.age));
        call.arg(MOST_PER_NAME).arg(bounds.entries).arg(bounds.bytes);
        self.run(Operation::Keep, &self.values, &call).await
    }

    pub(super) async fn find(&self, team: &str, names: &[String]) -> Result<Vec<Vec<Bytes>>, StoreError> {
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let family = self.keys.shelf(team);
        let digests: Vec<String> = names.iter().map(|name| digest(name)).collect();
        let look = async |mut link: MultiplexedConnection| {
            let mut lists = redis::pipe();
            for digest in &digests {
                lists.lrange([&family.names, digest.as_str()].concat(), 0, -1);
            }
            let lists: Vec<Vec<String>> = lists.query_async(&mut link).await?;
            let numbers = within(&lists, MOST_FOUND);
            let keys: Vec<String> = digests
                .iter()
                .zip(&numbers)
                .flat_map(|(digest, numbers)| numbers.iter().map(move |number| (digest, number)))
                .map(|(digest, number)| format!("{}{digest}:{number}", family.values))
                .collect();
            if keys.is_empty() {
                return Ok(vec![Vec::new(); names.len()]);
            }
            let values: Vec<Option<Bytes>> = redis::cmd("MGET").arg(keys).query_async(&mut link).await?;
            let mut values = values.into_iter();
            let each = numbers.iter().map(|n| values.by_ref().take(n.len()).flatten().collect());
            RedisResult::Ok(each.collect())
        };
        self.measured(Operation::Find, self.values.ask(look)).await
    }

    pub(super) async fn claim(
        &self,
        key: Key<'_>,
        value: &Bytes,
        live: Duration,
    ) -> Result<Claim, StoreError> {
        let bounds = self.capacity.records;
        let size = fitting(key.name, value, &bounds)?;
        let version = Version::new();
        let family = self.keys.records(key.team);
        let mut call = indexed(&self.scripts.claim, &family);
        call.arg(member(key)).arg(&version.0.as_bytes()[..]).arg(&value[..]).arg(size);
        call.arg(lifetime(live, &bounds)).arg(bounds.entries).arg(bounds.bytes).arg(millis(bounds.age));
        let there = self.run(Operation::Claim, &self.values, &call).await?;
        Ok(record(there)?.map_or(Claim::Yours(version), Claim::Taken))
    }

    pub(super) async fn read(&self, key: Key<'_>) -> Result<Option<Record>, StoreError> {
        let family = self.keys.records(key.team);
        let mut call = self.scripts.read.prepare_invoke();
        call.key([family.values, member(key)].concat());
        record(self.run(Operation::Read, &self.values, &call).await?)
    }

    /// Without a value it stays as it is.
    pub(super) async fn replace(
        &self,
        key: Key<'_>,
        known: Version,
        value: Option<&Bytes>,
        live: Duration,
    ) -> Result<Option<Version>, StoreError> {
        let bounds = self.capacity.records;
        let size = value.map_or(Ok(0), |value| fitting(key.name, value, &bounds))?;
        let version = Version::new();
        let family = self.keys.records(key.team);
        let mut call = indexed(&self.scripts.replace, &family);
        call.arg(member(key)).arg(&known.0.as_bytes()[..]).arg(&version.0.as_bytes()[..]);
        call.arg(u8::from(value.is_some())).arg(value.map_or(&[][..], |value| &value[..])).arg(size);
        call.arg(lifetime(live, &bounds)).arg(bounds.entries).arg(bounds.bytes).arg(millis(bounds.age));
        let done: bool = self.run(Operation::Replace, &self.values, &call).await?;
        Ok(done.then_some(version))
    }

    pub(super) async fn remove(&self, key: Key<'_>, known: Version) -> Result<bool, StoreError> {
        let family = self.keys.records(key.team);
        let mut call = indexed(&self.scripts.remove, &family);
        call.arg(member(key)).arg(&known.0.as_bytes()[..]);
        self.run(Operation::Remove, &self.values, &call).await
    }

    pub(super) async fn charge(
        &self,
        team: &Arc<str>,
        charges: &[Charge<'_>],
        deed: Deed,
    ) -> Result<Taken, StoreError> {
        match (self.charge_shared(team, charges, deed).await, self.on_error) {
            (Err(StoreError::Down(_)), OnError::Local) => {
                Ok(Taken { local: true, ..self.local.charge(team, charges, deed) })
            }
            (shared, OnError::Local | OnError::Deny) => shared,
        }
    }

    async fn charge_shared(
        &self,
        team: &str,
        charges: &[Charge<'_>],
        deed: Deed,
    ) -> Result<Taken, StoreError> {
        if charges.is_empty() {
            return Ok(Taken { standings: Vec::new(), local: false });
        }
        let calendar = millis(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default());
        let mut call = self.scripts.charge.prepare_invoke();
        call.arg(deed.word());
        let mut ends = Vec::with_capacity(charges.len());
        for Charge { meter, amount } in charges {
            let bucket = meter.rule.bucket();
            let (period, left) = match meter.rule {
                Rule::Rate(_) => (None, Duration::ZERO),
                Rule::Budget(budget) => {
                    let span = budget.period.at(calendar);
                    (Some(span.number), Duration::from_millis(span.end.saturating_sub(calendar)))
                }
            };
            let forget = if period.is_some() { left + AFTER_PERIOD } else { Duration::ZERO };
            call.key(self.keys.meter(team, &meter.name, period));
            call.arg(bucket.leak).arg(bucket.unit).arg(bucket.capacity).arg(*amount).arg(millis(forget));
            ends.push(left);
        }
        let answer: Vec<u64> = self.run(Operation::Charge, &self.quotas, &call).await?;
        let [done, levels @ ..] = &answer[..] else { return Err(nonsense()) };
        if levels.len() != charges.len() {
            return Err(nonsense());
        }
        let each = charges.iter().zip(levels).zip(ends);
        let standings = each.map(|((charge, full), ends)| {
            let rule = charge.meter.rule;
            let level = Level { full: *full, at: 0 };
            let denied = *done == 0 && !rule.bucket().admits(level, charge.amount);
            standing(rule, level, denied.then_some(charge.amount), ends)
        });
        Ok(Taken { standings: standings.collect(), local: false })
    }

    async fn run<T: redis::FromRedisValue>(
        &self,
        operation: Operation,
        link: &Link,
        call: &ScriptInvocation<'_>,
    ) -> Result<T, StoreError> {
        let asked = link.ask(async |mut link: MultiplexedConnection| call.invoke_async(&mut link).await);
        self.measured(operation, asked).await
    }

    async fn measured<T>(
        &self,
        operation: Operation,
        asked: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let began = tokio::time::Instant::now();
        let answer = asked.await;
        let labels = [("operation", operation.word())];
        match &answer {
            Ok(_) => self.telemetry.seconds(metrics::STORE_SECONDS, &labels, began.elapsed()),
            Err(_) => self.telemetry.count(metrics::STORE_ERRORS, &labels, 1),
        }
        answer
    }
}

/// The client of these settings.
fn client(
    settings: &Shared,
    open: impl Fn(&Secret) -> Result<SecretString, String>,
) -> Result<Client, Unusable> {
    let wrong = |setting| move |message: String| Unusable { setting, message };
    let url = open(&settings.redis).map_err(wrong("redis"))?;
    // The error's own words may have the URL in them, and that a password.
    let not_a_url = |_| wrong("redis")("this is not a URL of a Redis: write redis://HOST:PORT".into());
    let mut info = url.expose_secret().into_connection_info().map_err(not_a_url)?;
    let mut login = info.redis_settings().clone();
    if let Some(username) = &settings.username {
        login = login.set_username(username);
    }
    if let Some(password) = &settings.password {
        login = login.set_password(open(password).map_err(wrong("password"))?.expose_secret());
    }
    info = info.set_redis_settings(login);
    let Some(ca) = &settings.ca else {
        return Client::open(info).map_err(|error| wrong("redis")(error.to_string()));
    };
    let pem = std::fs::read(ca).map_err(|why| wrong("ca")(format!("{ca} cannot be read: {why}")))?;
    let certificates = TlsCertificates { client_tls: None, root_cert: Some(pem) };
    Client::build_with_tls(info, certificates).map_err(|error| wrong("ca")(error.to_string()))
}

/// What a value counts, if it fits at all.
fn fitting(name: &str, value: &Bytes, bounds: &Bounds) -> Result<usize, StoreError> {
    let size = value.len() + name.len() + OVERHEAD;
    if size > bounds.bytes || bounds.entries == 0 { Err(StoreError::TooLarge) } else { Ok(size) }
}

fn lifetime(live: Duration, bounds: &Bounds) -> u64 {
    millis(live.min(bounds.age)).max(1)
}

fn indexed<'a>(script: &'a Script, family: &Family) -> ScriptInvocation<'a> {
    let mut call = script.prepare_invoke();
    call.key(&family.order).key(&family.ends).key(&family.sizes).key(&family.values);
    call
}

/// The numbers of these lists, `N.SIZE` each, as far as their sizes do not exceed `most`; the newest of each
/// name go first.
fn within(lists: &[Vec<String>], most: usize) -> Vec<Vec<&str>> {
    let mut left = most;
    let mut fits = |number: &&str| {
        let size = number.split_once('.').and_then(|(_, size)| size.parse::<usize>().ok());
        let rest = size.and_then(|size| left.checked_sub(size));
        left = rest.unwrap_or(0);
        rest.is_some()
    };
    lists
        .iter()
        .map(|list| list.iter().take(MOST_PER_NAME).map(String::as_str).take_while(&mut fits).collect())
        .collect()
}

/// A record as scripts give it: nothing, or version, value and age.
fn record(parts: Option<(Bytes, Bytes, u64)>) -> Result<Option<Record>, StoreError> {
    let Some((version, value, age)) = parts else { return Ok(None) };
    let version = uuid::Uuid::from_slice(&version).map_err(|_| nonsense())?;
    Ok(Some(Record { version: Version(version), value, age: Duration::from_millis(age) }))
}

fn nonsense() -> StoreError {
    StoreError::Down("it answers what it was not asked: does somebody else use the namespace?".into())
}
