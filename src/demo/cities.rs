//! The cities the demo knows: its whole world, so that every answer is the same each time.

/// A city with fixed weather.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct City {
    /// Its English name.
    pub name: &'static str,
    /// Its IANA time zone.
    pub zone: &'static str,
    /// Hours it is ahead of UTC, summer time aside.
    pub utc_offset: i8,
    /// Degrees Celsius, always.
    pub celsius: i8,
    /// The state of its sky, always.
    pub sky: &'static str,
}

const fn city(
    name: &'static str,
    zone: &'static str,
    utc_offset: i8,
    celsius: i8,
    sky: &'static str,
) -> City {
    City { name, zone, utc_offset, celsius, sky }
}

/// All of them.
pub const ALL: [City; 20] = [
    city("Paris", "Europe/Paris", 1, 18, "light rain"),
    city("Tokyo", "Asia/Tokyo", 9, 24, "clear"),
    city("Lima", "America/Lima", -5, 19, "overcast"),
    city("Oslo", "Europe/Oslo", 1, 7, "snow"),
    city("Cairo", "Africa/Cairo", 2, 33, "sunny"),
    city("London", "Europe/London", 0, 14, "drizzle"),
    city("Berlin", "Europe/Berlin", 1, 16, "cloudy"),
    city("Madrid", "Europe/Madrid", 1, 27, "sunny"),
    city("Rome", "Europe/Rome", 1, 25, "clear"),
    city("Nairobi", "Africa/Nairobi", 3, 22, "partly cloudy"),
    city("Mumbai", "Asia/Kolkata", 5, 31, "humid"),
    city("Beijing", "Asia/Shanghai", 8, 20, "hazy"),
    city("Seoul", "Asia/Seoul", 9, 21, "clear"),
    city("Sydney", "Australia/Sydney", 10, 23, "windy"),
    city("Toronto", "America/Toronto", -5, 11, "cloudy"),
    city("New York", "America/New_York", -5, 15, "clear"),
    city("Chicago", "America/Chicago", -6, 9, "windy"),
    city("Mexico City", "America/Mexico_City", -6, 22, "thunderstorms"),
    city("Bogota", "America/Bogota", -5, 17, "light rain"),
    city("San Francisco", "America/Los_Angeles", -8, 16, "fog"),
];

/// The city of this name, capitals aside.
#[must_use]
pub fn find(name: &str) -> Option<&'static City> {
    ALL.iter().find(|city| city.name.eq_ignore_ascii_case(name.trim()))
}

/// The cities a text names, in the order in which it first names them.
#[must_use]
pub fn named_in(text: &str) -> Vec<&'static City> {
    let text = text.to_lowercase();
    let mut found: Vec<(usize, &City)> = ALL
        .iter()
        .filter_map(|city| whole_word(&text, &city.name.to_lowercase()).map(|at| (at, city)))
        .collect();
    found.sort_by_key(|(at, _)| *at);
    found.into_iter().map(|(_, city)| city).collect()
}

/// Where `word` stands in `text` with no letter right before or after it.
fn whole_word(text: &str, word: &str) -> Option<usize> {
    text.match_indices(word).map(|(at, _)| at).find(|&at| {
        let before = text[..at].chars().next_back();
        let after = text[at + word.len()..].chars().next();
        !before.is_some_and(char::is_alphabetic) && !after.is_some_and(char::is_alphabetic)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cities_are_found_in_the_order_of_the_text_and_only_as_whole_words() {
        let names = |text| named_in(text).iter().map(|c| c.name).collect::<Vec<_>>();
        assert_eq!(names("Weather in Tokyo, Paris and LIMA?"), ["Tokyo", "Paris", "Lima"]);
        assert_eq!(names("what limap is, parisian food"), Vec::<&str>::new());
        assert_eq!(names("new york."), ["New York"]);
    }
}
