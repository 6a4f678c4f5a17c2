//! How a model name finds its upstreams.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::client::Upstream;
use super::settings;
use crate::policy::pattern::fits;
use crate::policy::plan::Habits;
use crate::policy::settings::{LowerLimits, Overrides};

/// The most upstreams one route may have.
pub const MOST_TARGETS: usize = 16;

/// One of a route's upstreams.
#[derive(Debug, Clone)]
pub struct Target {
    /// The upstream.
    pub upstream: Arc<Upstream>,
    /// The model's name there, if not the one the client sent.
    pub model: Option<Arc<str>>,
    weight: Option<u32>,
}

impl Target {
    /// The model's name there, when the client sent this one.
    #[must_use]
    pub fn model<'a>(&'a self, sent: &'a str) -> &'a str {
        self.model.as_deref().unwrap_or(sent)
    }
}

/// Where a model's requests go, and by which rules.
#[derive(Debug, Clone)]
pub struct Route {
    /// The pattern: the label of metrics.
    pub model: Arc<str>,
    /// The route's rules.
    pub policy: Overrides,
    /// The route's lower limits.
    pub limits: LowerLimits,
    targets: Vec<Target>,
    says: Says,
}

/// What the operator says of the model, beside the upstream's habits.
#[derive(Debug, Clone, Copy, Default)]
struct Says {
    takes_parallel: Option<bool>,
    takes_format: Option<bool>,
    takes_effort: Option<bool>,
}

impl Route {
    /// Its upstreams, in the order in which one request asks them. `below` gives a number from 0 that
    /// is smaller than the one it gets: chance.
    ///
    /// Neighbours with a weight are one group: one of them is drawn, then another of the rest, until
    /// all are drawn.
    pub fn targets(&self, mut below: impl FnMut(u32) -> u32) -> Vec<Target> {
        let mut ordered = Vec::with_capacity(self.targets.len());
        for group in self.targets.chunk_by(|a, b| a.weight.is_some() && b.weight.is_some()) {
            let mut rest: Vec<&Target> = group.iter().collect();
            while !rest.is_empty() {
                let weights = rest.iter().map(|target| target.weight.unwrap_or(1));
                let sum = weights.clone().fold(0u32, u32::saturating_add);
                let mut drawn = if rest.len() > 1 { below(sum) } else { 0 };
                let mut at = 0;
                for (i, weight) in weights.enumerate() {
                    at = i;
                    if drawn < weight {
                        break;
                    }
                    drawn -= weight;
                }
                ordered.push(rest.remove(at).clone());
            }
        }
        ordered
    }

    /// Whether it leads to an upstream.
    #[must_use]
    pub fn leads_to(&self, upstream: &str) -> bool {
        self.targets.iter().any(|target| *target.upstream.name == *upstream)
    }

    /// The model this route is another name for: its pattern names one model, which is called
    /// differently at every upstream.
    #[must_use]
    pub fn is_alias(&self) -> bool {
        !self.model.contains('*')
            && *self.model != *crate::telemetry::metrics::OTHER
            && self.targets.iter().all(|target| target.model.is_some())
    }

    /// The habits of one of its upstreams with the model a request asks.
    #[must_use]
    pub fn habits(&self, target: &Target, model: &str, needs_serial: bool, streams: bool) -> Habits {
        let mut habits = target.upstream.habits(target.model(model), self.says.takes_parallel, streams);
        habits.needs_serial_strict |= needs_serial;
        if let Some(takes) = self.says.takes_format {
            habits.takes_format_with_tools = takes;
        }
        if let Some(takes) = self.says.takes_effort {
            habits.takes_effort_with_tools = takes;
        }
        habits
    }
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
        let target = |route: &settings::Route, target: &settings::Target| {
            let upstream = upstreams.get(target.name())?.clone();
            let model = target.model().or(route.upstream_model.as_deref()).map(Arc::from);
            Some(Target { upstream, model, weight: target.weight() })
        };
        let named = |route: &settings::Route| {
            let targets: Vec<Target> =
                route.upstreams.iter().filter_map(|named| target(route, named)).collect();
            (!targets.is_empty()).then(|| {
                Arc::new(Route {
                    model: route.model.as_str().into(),
                    policy: route.policy.clone(),
                    limits: route.limits.clone(),
                    targets,
                    says: Says {
                        takes_parallel: route.parallel_tool_calls,
                        takes_format: route.response_format_with_tools,
                        takes_effort: route.reasoning_effort_with_tools,
                    },
                })
            })
        };
        let mut list: Vec<_> = routes.iter().filter_map(named).collect();
        if let (true, Some(only)) = (list.is_empty(), upstreams.values().next()) {
            list.push(Arc::new(Route {
                model: crate::telemetry::metrics::OTHER.into(),
                policy: Overrides::default(),
                limits: LowerLimits::default(),
                targets: vec![Target { upstream: only.clone(), model: None, weight: None }],
                says: Says::default(),
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

    /// All routes, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Route>> {
        self.routes.iter()
    }

    /// Whether a body's model matters: it decides where a request goes, or what the model is called there.
    #[must_use]
    pub fn ask_for_model(&self) -> bool {
        self.upstreams.len() > 1
            || self.upstreams.values().any(|upstream| upstream.paths_name_models())
            || self.routes.iter().any(|route| route.targets.iter().any(|target| target.model.is_some()))
    }

    /// All upstreams, by name.
    pub fn upstreams(&self) -> impl Iterator<Item = &Arc<Upstream>> {
        self.upstreams.values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Telemetry;
    use crate::upstream::Setup;

    fn routes(yaml: &str) -> Routes {
        let routes: Vec<settings::Route> = serde_saphyr::from_str(yaml).unwrap();
        let telemetry = Telemetry::new().unwrap();
        let upstream = |name: &str| {
            let settings = settings::Settings::new("http://a.example/v1");
            let setup = Setup { team_keys: &BTreeMap::new(), before: None, telemetry: &telemetry };
            let upstream = Upstream::new(name, &settings, setup, |_| Err(String::new())).unwrap();
            (name.to_owned(), Arc::new(upstream))
        };
        Routes::new(&routes, ["a", "b", "c", "d"].map(upstream).into())
    }

    fn order(route: &Route, below: impl FnMut(u32) -> u32) -> String {
        route.targets(below).iter().map(|target| &*target.upstream.name).collect()
    }

    #[test]
    fn upstreams_are_asked_in_the_order_of_the_file() {
        let routes = routes("[{ model: x, upstreams: [c, a, b] }]");
        assert_eq!(order(routes.of("x").unwrap(), |_| panic!("nothing to draw")), "cab");
    }

    #[test]
    fn neighbours_with_a_weight_are_drawn_by_it_and_the_others_keep_their_place() {
        let routes =
            routes("[{ model: x, upstreams: [d, { name: a, weight: 3 }, { name: b, weight: 1 }, c] }]");
        let route = routes.of("x").unwrap();
        let drawn = [0, 1, 2, 3].map(|n| {
            order(route, |sum| {
                assert_eq!(sum, 4);
                n
            })
        });
        assert_eq!(drawn, ["dabc", "dabc", "dabc", "dbac"]);
        let mut chance = fastrand::Rng::with_seed(7);
        let first = (0..4000).filter(|_| order(route, |sum| chance.u32(..sum)) == "dabc").count();
        assert!((2850..3150).contains(&first), "{first} of 4000");
    }

    #[test]
    fn a_model_has_another_name_where_the_route_or_the_upstream_says_so() {
        let routes = routes(
            "[{ model: fast, upstreams: [{ name: a, model: x-mini }, b], upstream_model: x }, { model: 'y*', upstreams: [a] }]",
        );
        let route = routes.of("fast").unwrap();
        let names: Vec<String> = route.targets(|_| 0).iter().map(|t| t.model("fast").to_owned()).collect();
        assert_eq!(names, ["x-mini", "x"]);
        assert!(route.is_alias() && !routes.of("y1").unwrap().is_alias());
        assert!(route.leads_to("b") && !route.leads_to("c"));
        assert!(routes.of("z").is_none());
    }
}
