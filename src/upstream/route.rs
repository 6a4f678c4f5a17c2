//! How a model name finds its upstream.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::client::Upstream;
use super::settings;
use crate::policy::pattern::fits;
use crate::policy::settings::{LowerLimits, Overrides};

/// Where a model's requests go, and by which rules.
#[derive(Debug, Clone)]
pub struct Route {
    /// The pattern: the label of metrics.
    pub model: Arc<str>,
    /// The upstream.
    pub upstream: Arc<Upstream>,
    /// The route's rules.
    pub policy: Overrides,
    /// The route's lower limits.
    pub limits: LowerLimits,
    /// Whether the model takes `parallel_tool_calls`, where the operator says so.
    pub takes_parallel: Option<bool>,
}

/// All routes, in order.
#[derive(Debug, Clone)]
pub struct Routes {
    routes: Vec<Arc<Route>>,
    upstreams: BTreeMap<String, Arc<Upstream>>,
}

impl Routes {
    /// The routes of the file. Without any, every model goes to the first upstream; its label is
    /// [`crate::telemetry::metrics::OTHER`].
    #[must_use]
    pub fn new(routes: &[settings::Route], upstreams: BTreeMap<String, Arc<Upstream>>) -> Self {
        let named = |route: &settings::Route| {
            let upstream = upstreams.get(route.upstreams.first()?)?.clone();
            Some(Arc::new(Route {
                model: route.model.as_str().into(),
                upstream,
                policy: route.policy.clone(),
                limits: route.limits.clone(),
                takes_parallel: route.parallel_tool_calls,
            }))
        };
        let mut list: Vec<_> = routes.iter().filter_map(named).collect();
        if let (true, Some(only)) = (list.is_empty(), upstreams.values().next()) {
            list.push(Arc::new(Route {
                model: crate::telemetry::metrics::OTHER.into(),
                upstream: only.clone(),
                policy: Overrides::default(),
                limits: LowerLimits::default(),
                takes_parallel: None,
            }));
        }
        Self { routes: list, upstreams }
    }

    /// The first route that fits a model.
    #[must_use]
    pub fn of(&self, model: &str) -> Option<&Arc<Route>> {
        let fits_all = |route: &Arc<Route>| *route.model == *crate::telemetry::metrics::OTHER;
        self.routes.iter().find(|route| fits_all(route) || fits(&route.model, model))
    }

    /// The route of requests that name no model.
    #[must_use]
    pub fn first(&self) -> Option<&Arc<Route>> {
        self.routes.first()
    }

    /// All upstreams, by name.
    pub fn upstreams(&self) -> impl Iterator<Item = &Arc<Upstream>> {
        self.upstreams.values()
    }
}
