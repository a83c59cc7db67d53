//! An adapter from several sources in turn: workers that hand it on, then the coordinator.

use std::{sync::Arc, time::Duration};

use tokio::time::timeout;
use tracing::{info, warn};

use super::{Assembly, Broken, Checks, GrpcTransport, Reach, Relay, Silence, TransportError};
use crate::{
    client::{ClientError, ClientOptions, connect, innermost},
    v1::{AdapterLeg, PolicyVersion},
};

/// The longest that a relay may be silent: who has others to ask need not be patient.
const SILENCE: Duration = Duration::from_secs(4);
/// And so much more for each relay that lies between it and the coordinator, since a break there is
/// mended by whoever is next to it.
const SILENCE_A_HOP: Duration = Duration::from_secs(2);
/// Hops beyond this wait no longer.
const MOST_HOPS: u32 = 8;

/// A worker that hands the adapter on.
#[derive(Clone, Debug)]
pub struct Source {
    worker: String,
    client: ClientOptions,
}

impl Source {
    /// A worker's relay at this address, for a worker that dials its coordinator like this.
    ///
    /// # Errors
    /// What is wrong with the address.
    pub fn new(worker: String, relay: &str, coordinator: &ClientOptions) -> Result<Self, String> {
        Reach::of(relay).map_err(|error| error.to_string())?;
        let url = relay.to_owned();
        let client = if relay.starts_with("https") {
            ClientOptions {
                url,
                ..coordinator.clone()
            }
        } else {
            // On loopback, without TLS, whatever the coordinator has.
            ClientOptions {
                url,
                token: coordinator.token.clone(),
                ..ClientOptions::default()
            }
        };
        client.full_url().map_err(|error| error.to_string())?;
        Ok(Self { worker, client })
    }
}

/// What a fetch came to, and by which way.
#[derive(Debug)]
pub struct Fetched {
    /// The adapter, verified.
    pub bytes: Result<Arc<Vec<u8>>, TransportError>,
    /// Which source gave what.
    pub legs: Vec<AdapterLeg>,
}

/// Fetches from relays in turn, and last from the coordinator; whatever arrives is checked piece by
/// piece, and handed on by a relay of one's own.
#[derive(Clone, Debug)]
pub struct Relayed {
    origin: GrpcTransport,
    sources: Vec<Source>,
    checks: Option<Checks>,
    relay: Option<Relay>,
    silence: Duration,
}

impl Relayed {
    /// From the coordinator, by this way.
    pub fn new(origin: GrpcTransport) -> Self {
        Self {
            origin,
            sources: Vec::new(),
            checks: None,
            relay: None,
            silence: SILENCE,
        }
    }

    /// From these first, in this order; `depth` is how many relays the bytes pass.
    #[must_use]
    pub fn with_sources(self, sources: Vec<Source>, checks: Checks, depth: u32) -> Self {
        Self {
            sources,
            checks: Some(checks),
            silence: SILENCE + SILENCE_A_HOP * depth.saturating_sub(1).min(MOST_HOPS),
            ..self
        }
    }

    /// Handed on by this.
    #[must_use]
    pub fn with_relay(self, relay: Option<Relay>) -> Self {
        Self { relay, ..self }
    }

    /// The longest that a relay may be silent.
    #[must_use]
    pub fn with_silence(self, silence: Duration) -> Self {
        Self { silence, ..self }
    }

    /// The adapter's bytes, verified against the version's digest.
    pub async fn fetch(&self, version: &PolicyVersion) -> Fetched {
        let mut legs = Vec::new();
        let bytes = self.fetch_by_legs(version, &mut legs).await;
        Fetched { bytes, legs }
    }

    async fn fetch_by_legs(
        &self,
        version: &PolicyVersion,
        legs: &mut Vec<AdapterLeg>,
    ) -> Result<Arc<Vec<u8>>, TransportError> {
        let assembly = Assembly::new(version.clone(), self.origin.limit)?;
        let mut assembly = assembly.with_checks(self.checks.clone());
        if let Some(relay) = &self.relay {
            relay.begin(assembly.transfer().clone());
        }
        for source in &self.sources {
            let before = assembly.held();
            let outcome = self.ask_relay(source, &mut assembly).await;
            assembly.settle();
            let mut leg = AdapterLeg {
                worker_id: source.worker.clone(),
                bytes: assembly.held() - before,
                ..AdapterLeg::default()
            };
            if let Err(broken) = outcome {
                let wrong = matches!(broken, Broken::Final(TransportError::WrongPiece { .. }));
                leg.wrong_bytes = wrong;
                leg.problem = match broken {
                    Broken::Passing(why) => why,
                    Broken::Final(error) => error.to_string(),
                };
                let (version, source, problem) = (version.short(), &leg.worker_id, &leg.problem);
                if wrong {
                    warn!(%version, source, problem, "a relay gave wrong bytes; going on elsewhere");
                } else {
                    info!(%version, source, problem, "a relay failed; going on elsewhere");
                }
            }
            legs.push(leg);
            if assembly.is_complete() {
                return assembly.finish();
            }
        }
        let before = assembly.held();
        let outcome = self.origin.fetch_into(&mut assembly).await;
        let problem = match &outcome {
            Ok(()) => String::new(),
            Err(error) => error.to_string(),
        };
        legs.push(AdapterLeg {
            bytes: assembly.held().saturating_sub(before),
            problem,
            ..AdapterLeg::default()
        });
        outcome?;
        assembly.finish()
    }

    async fn ask_relay(&self, source: &Source, assembly: &mut Assembly) -> Result<(), Broken> {
        let silence = Silence {
            open: self.silence,
            chunk: self.silence,
        };
        let dialled = timeout(self.silence, connect(&source.client)).await;
        let channel = dialled
            .map_err(|_| Broken::silent("connection", self.silence))?
            .map_err(|error| {
                Broken::Passing(match error {
                    ClientError::Connect { url, source } => {
                        format!("nobody answers at {url}: {}", innermost(&source))
                    }
                    other => other.to_string(),
                })
            })?;
        let interceptor = source
            .client
            .interceptor()
            .map_err(|error| Broken::Passing(error.to_string()))?;
        GrpcTransport::new(channel, interceptor)
            .with_limit(self.origin.limit)
            .fetch_once(assembly, silence)
            .await
    }
}
