//! The demo's tools as a tiny HTTP server: weather that takes its time, a clock, a currency table.

use std::time::Duration;

use http::{Method, Request, Response};
use hyper::body::Incoming;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::cities::{self, City};
use super::listen::{Body, json};

/// Answers one request.
pub(super) async fn answer(request: Request<Incoming>) -> Response<Body> {
    if request.method() != Method::GET {
        return json(405, &json!({ "error": "only GET" }));
    }
    let query: Vec<(String, String)> =
        url::form_urlencoded::parse(request.uri().query().unwrap_or_default().as_bytes())
            .into_owned()
            .collect();
    let argument = |name: &str| {
        query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str()).unwrap_or_default()
    };
    let (status, value) = match request.uri().path() {
        "/weather" => {
            tokio::time::sleep(delay(argument("city"))).await;
            weather(argument("city"))
        }
        "/clock" => clock(argument("city"), Timestamp::now()),
        "/currency" => currency(argument("amount"), argument("from"), argument("to")),
        other => (404, json!({ "error": format!("there is no {other}") })),
    };
    json(status, &value)
}

/// How long the weather of a city takes: 600 to 900 ms, always the same for the same city.
#[must_use]
pub fn delay(city: &str) -> Duration {
    let place = cities::ALL.iter().position(|known| known.name.eq_ignore_ascii_case(city.trim()));
    let step = u64::try_from(place.unwrap_or(cities::ALL.len())).unwrap_or(0);
    Duration::from_millis(600 + step * 110 % 301)
}

fn weather(city: &str) -> (u16, Value) {
    let Some(City { name, celsius, sky, .. }) = cities::find(city) else {
        return (404, json!({ "error": format!("no weather station in {city}") }));
    };
    let summary = format!("{name}: {celsius} °C, {sky}");
    (200, json!({ "city": name, "temperature_c": celsius, "sky": sky, "summary": summary }))
}

fn clock(city: &str, now: Timestamp) -> (u16, Value) {
    let city = city.trim();
    let (name, offset) = match cities::find(city) {
        Some(known) => (known.name, known.utc_offset),
        None if city.is_empty() || city.eq_ignore_ascii_case("utc") => ("UTC", 0),
        None => return (404, json!({ "error": format!("no clock in {city}") })),
    };
    let there = now.saturating_add(SignedDuration::from_hours(offset.into())).unwrap_or(now);
    let time = there.strftime("%H:%M").to_string();
    let summary = format!("It is {time} in {name} (summer time aside)");
    (200, json!({ "city": name, "time": time, "summary": summary }))
}

/// How much of a currency one US dollar buys, always.
const RATES: [(&str, f64); 7] =
    [("USD", 1.0), ("EUR", 0.9), ("GBP", 0.8), ("JPY", 150.0), ("PEN", 3.75), ("CHF", 0.88), ("INR", 83.0)];

fn currency(amount: &str, from: &str, to: &str) -> (u16, Value) {
    let rate = |code: &str| {
        RATES.iter().find(|(known, _)| known.eq_ignore_ascii_case(code.trim())).map(|(_, rate)| *rate)
    };
    let (Some(source), Some(target)) = (rate(from), rate(to)) else {
        let known: Vec<&str> = RATES.iter().map(|(code, _)| *code).collect();
        return (400, json!({ "error": format!("known currencies are {}", known.join(", ")) }));
    };
    let Some(amount) = amount.trim().parse::<f64>().ok().filter(|amount| amount.is_finite()) else {
        return (400, json!({ "error": "amount must be a number" }));
    };
    let result = (amount / source * target * 100.0).round() / 100.0;
    let (from, to) = (from.trim().to_uppercase(), to.trim().to_uppercase());
    (200, json!({ "result": result, "currency": to, "summary": format!("{amount} {from} = {result} {to}") }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_city_takes_its_own_time_between_600_and_900_milliseconds() {
        let delays: Vec<u128> =
            ["Paris", "Tokyo", "Lima", "Atlantis"].iter().map(|city| delay(city).as_millis()).collect();
        assert!(delays.iter().all(|ms| (600..=900).contains(ms)), "{delays:?}");
        assert!(delays[0] != delays[1] && delays[1] != delays[2]);
        assert_eq!(delay("paris"), delay("Paris"));
    }

    #[test]
    fn the_weather_never_changes_and_unknown_cities_say_so() {
        assert_eq!(weather("lima").1["summary"], "Lima: 19 °C, overcast");
        assert_eq!(weather("Atlantis").0, 404);
    }

    #[test]
    fn the_clock_counts_from_utc() {
        let now: Timestamp = "2026-01-31T23:30:00Z".parse().unwrap();
        assert_eq!(clock("Tokyo", now).1["time"], "08:30");
        assert_eq!(clock("UTC", now).1["time"], "23:30");
        assert_eq!(clock("Atlantis", now).0, 404);
    }

    #[test]
    fn money_is_converted_or_the_reason_is_told() {
        assert_eq!(currency("100", "usd", "EUR").1["summary"], "100 USD = 90 EUR");
        assert_eq!(currency("1", "XXX", "EUR").0, 400);
        assert_eq!(currency("lots", "USD", "EUR").0, 400);
    }
}
