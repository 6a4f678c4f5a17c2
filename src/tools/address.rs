//! Which addresses a tool may reach.
//!
//! Pure: a decision over an address that was already resolved. An address that carries an IPv4 address inside
//! is judged by both, so a refused target cannot hide in a mapped form.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

const fn v4(a: u8, b: u8, c: u8, d: u8, prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix)
}

const fn v6(a: u16, b: u16, c: u16, f: u16, prefix: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, 0, 0, f, 0, 0), prefix)
}

const MAPPED: Ipv6Net = v6(0, 0, 0, 0xffff, 96);
const COMPATIBLE: Ipv6Net = v6(0, 0, 0, 0, 96);
const NAT64: Ipv6Net = v6(0x64, 0xff9b, 0, 0, 96);
const NAT64_LOCAL: Ipv6Net = v6(0x64, 0xff9b, 1, 0, 48);
const SIX_TO_FOUR: Ipv6Net = v6(0x2002, 0, 0, 0, 16);

/// IPv4 networks no tool reaches unless its settings open them.
const REFUSED_V4: [Ipv4Net; 16] = [
    v4(0, 0, 0, 0, 8),        // unspecified, "this network"
    v4(10, 0, 0, 0, 8),       // private
    v4(100, 64, 0, 0, 10),    // shared by carriers
    v4(127, 0, 0, 0, 8),      // loopback
    v4(168, 63, 129, 16, 32), // a cloud's own platform service
    v4(169, 254, 0, 0, 16),   // link-local, clouds' metadata
    v4(172, 16, 0, 0, 12),    // private
    v4(192, 0, 0, 0, 24),     // protocol assignments
    v4(192, 0, 2, 0, 24),     // documentation
    v4(192, 88, 99, 0, 24),   // 6to4 relays
    v4(192, 168, 0, 0, 16),   // private
    v4(198, 18, 0, 0, 15),    // benchmarks
    v4(198, 51, 100, 0, 24),  // documentation
    v4(203, 0, 113, 0, 24),   // documentation
    v4(224, 0, 0, 0, 4),      // multicast
    v4(240, 0, 0, 0, 4),      // reserved, broadcast
];

/// IPv6 networks no tool reaches unless its settings open them; `::` and `::1` are in the compatible ones.
const REFUSED_V6: [Ipv6Net; 12] = [
    COMPATIBLE,
    MAPPED,
    NAT64,
    NAT64_LOCAL,
    SIX_TO_FOUR,
    v6(0x100, 0, 0, 0, 64),      // discarded
    v6(0x2001, 0, 0, 0, 23),     // protocol assignments, Teredo
    v6(0x2001, 0xdb8, 0, 0, 32), // documentation
    v6(0xfc00, 0, 0, 0, 7),      // unique local
    v6(0xfe80, 0, 0, 0, 10),     // link-local
    v6(0xfec0, 0, 0, 0, 10),     // site-local
    v6(0xff00, 0, 0, 0, 8),      // multicast
];

/// Networks whose literal addresses in a URL of the settings open themselves.
const NAMEABLE_V4: [Ipv4Net; 5] = [
    v4(10, 0, 0, 0, 8),
    v4(100, 64, 0, 0, 10),
    v4(127, 0, 0, 0, 8),
    v4(172, 16, 0, 0, 12),
    v4(192, 168, 0, 0, 16),
];
const NAMEABLE_V6: [Ipv6Net; 2] = [v6(0xfc00, 0, 0, 0, 7), Ipv6Net::new_assert(Ipv6Addr::LOCALHOST, 128)];

/// What a tool may reach: everything but the refused networks, and of those what its settings open.
#[derive(Debug, Clone, Default)]
pub(super) struct Reach {
    opened: Vec<IpNet>,
}

impl Reach {
    /// The public internet and these networks.
    pub(super) fn with(opened: Vec<IpNet>) -> Self {
        Self { opened }
    }

    /// Opens the address itself when it is private or loopback: whoever wrote it into the settings meant it.
    pub(super) fn name_literal(&mut self, address: IpAddr) {
        let nameable = match address {
            IpAddr::V4(address) => NAMEABLE_V4.iter().any(|net| net.contains(&address)),
            IpAddr::V6(address) => NAMEABLE_V6.iter().any(|net| net.contains(&address)),
        };
        if nameable {
            self.opened.push(address.into());
        }
    }

    /// Opens loopback: the settings say `localhost`.
    pub(super) fn name_localhost(&mut self) {
        self.opened.push(v4(127, 0, 0, 0, 8).into());
        self.opened.push(IpNet::from(IpAddr::V6(Ipv6Addr::LOCALHOST)));
    }

    /// Whether this very address may be connected to.
    pub(super) fn allows(&self, address: IpAddr) -> bool {
        let IpAddr::V6(outer) = address else {
            return self.open(address) || !refused(address);
        };
        match carried(outer) {
            None => self.open(address) || !refused(address),
            // The kernel turns a mapped address into the IPv4 one: opening that opens this.
            Some(inner) if MAPPED.contains(&outer) => {
                self.open(inner.into()) || (self.open(address) && !refused(inner.into()))
            }
            Some(inner) => self.open(address) && (self.open(inner.into()) || !refused(inner.into())),
        }
    }

    fn open(&self, address: IpAddr) -> bool {
        self.opened.iter().any(|net| net.contains(&address))
    }
}

fn refused(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => REFUSED_V4.iter().any(|net| net.contains(&address)),
        IpAddr::V6(address) => REFUSED_V6.iter().any(|net| net.contains(&address)),
    }
}

/// The IPv4 address an IPv6 address stands for. `::` and `::1` stand for themselves.
fn carried(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let [_, _, b0, b1, c0, c1, .., y0, y1, z0, z1] = address.octets();
    let last = Ipv4Addr::new(y0, y1, z0, z1);
    if address.is_loopback() || address.is_unspecified() {
        None
    } else if [MAPPED, COMPATIBLE, NAT64, NAT64_LOCAL].iter().any(|net| net.contains(&address)) {
        Some(last)
    } else if SIX_TO_FOUR.contains(&address) {
        Some(Ipv4Addr::new(b0, b1, c0, c1))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap_or_else(|_| panic!("{text}"))
    }

    /// First and last address of every refused range, and the forms IPv4 hides in.
    const REFUSED: &[&str] = &[
        "0.0.0.0",
        "0.255.255.255",
        "10.0.0.0",
        "10.0.0.1",
        "10.255.255.255",
        "100.64.0.0",
        "100.127.255.255",
        "127.0.0.0",
        "127.0.0.1",
        "127.255.255.255",
        "168.63.129.16",
        "169.254.0.0",
        "169.254.169.254",
        "169.254.255.255",
        "172.16.0.0",
        "172.31.255.255",
        "192.0.0.0",
        "192.0.0.255",
        "192.0.2.0",
        "192.0.2.255",
        "192.88.99.0",
        "192.88.99.255",
        "192.168.0.0",
        "192.168.255.255",
        "198.18.0.0",
        "198.19.255.255",
        "198.51.100.0",
        "198.51.100.255",
        "203.0.113.0",
        "203.0.113.255",
        "224.0.0.0",
        "239.255.255.255",
        "240.0.0.0",
        "255.255.255.255",
        "::",
        "::1",
        "::2",
        "::ffff",
        "::ffff:ffff",
        "::127.0.0.1",
        "::8.8.8.8",
        "::ffff:0:0",
        "::ffff:127.0.0.1",
        "::ffff:8.8.8.8",
        "::ffff:ffff:ffff",
        "64:ff9b::",
        "64:ff9b::127.0.0.1",
        "64:ff9b::8.8.8.8",
        "64:ff9b::ffff:ffff",
        "64:ff9b:1::",
        "64:ff9b:1:ffff:ffff:ffff:ffff:ffff",
        "100::",
        "100::ffff:ffff:ffff:ffff",
        "2001::",
        "2001::1",
        "2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff",
        "2001:db8::",
        "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff",
        "2002::",
        "2002:7f00:1::",
        "2002:808:808::",
        "2002:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        "fc00::",
        "fd00::1",
        "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        "fe80::",
        "fe80::1",
        "febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        "fec0::",
        "feff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        "ff00::",
        "ff02::1",
        "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    ];

    /// The neighbours of every refused range, and some of the public internet.
    const TAKEN: &[&str] = &[
        "1.0.0.0",
        "9.255.255.255",
        "11.0.0.0",
        "100.63.255.255",
        "100.128.0.0",
        "126.255.255.255",
        "128.0.0.0",
        "168.63.129.15",
        "168.63.129.17",
        "169.253.255.255",
        "169.255.0.0",
        "172.15.255.255",
        "172.32.0.0",
        "191.255.255.255",
        "192.0.1.0",
        "192.0.1.255",
        "192.0.3.0",
        "192.88.98.255",
        "192.88.100.0",
        "192.167.255.255",
        "192.169.0.0",
        "198.17.255.255",
        "198.20.0.0",
        "198.51.99.255",
        "198.51.101.0",
        "203.0.112.255",
        "203.0.114.0",
        "223.255.255.255",
        "8.8.8.8",
        "64:ff9a:ffff:ffff:ffff:ffff:ffff:ffff",
        "64:ff9b::1:0:0",
        "64:ff9b:0:ffff::",
        "64:ff9b:2::",
        "ff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        "100:0:0:1::",
        "2000:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        "2001:200::",
        "2001:db7:ffff:ffff:ffff:ffff:ffff:ffff",
        "2001:db9::",
        "2001:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        "2003::",
        "2606:4700::1111",
        "fbff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        "fe00::",
        "fe7f:ffff::",
        "::1:0:0:0",
        "::fffe:7f00:1",
        "0:0:0:1::",
        "::1:ffff:7f00:1",
    ];

    #[test]
    fn every_refused_range_is_refused_to_its_edges() {
        for address in REFUSED {
            assert!(!Reach::default().allows(ip(address)), "{address}");
        }
    }

    #[test]
    fn what_lies_beside_a_refused_range_is_taken() {
        for address in TAKEN {
            assert!(Reach::default().allows(ip(address)), "{address}");
        }
    }

    #[test]
    fn opening_a_network_opens_it_and_nothing_else() {
        let reach = |net: &str| Reach::with(vec![net.parse().unwrap()]);
        assert!(reach("10.1.0.0/16").allows(ip("10.1.2.3")));
        assert!(!reach("10.1.0.0/16").allows(ip("10.2.0.1")));
        assert!(reach("127.0.0.0/8").allows(ip("::ffff:127.0.0.1")), "the kernel makes 127.0.0.1 of it");
        assert!(!reach("127.0.0.0/8").allows(ip("::127.0.0.1")));
        assert!(!reach("127.0.0.0/8").allows(ip("64:ff9b::127.0.0.1")));
        assert!(!reach("127.0.0.0/8").allows(ip("2002:7f00:1::")));
        assert!(!reach("127.0.0.0/8").allows(ip("::1")));
        assert!(reach("::1/128").allows(ip("::1")));
        assert!(reach("fd00::/8").allows(ip("fd12::1")));
    }

    #[test]
    fn opening_an_ipv6_network_does_not_open_what_hides_in_it() {
        let all = Reach::with(vec!["::/0".parse().unwrap()]);
        for hidden in [
            "::ffff:127.0.0.1",
            "::10.0.0.1",
            "64:ff9b::169.254.169.254",
            "2002:7f00:1::",
            "64:ff9b:1::127.0.0.1",
        ] {
            assert!(!all.allows(ip(hidden)), "{hidden}");
        }
        assert!(all.allows(ip("64:ff9b::8.8.8.8")));
        assert!(all.allows(ip("2002:808:808::")));
        assert!(all.allows(ip("::1")), "it stands for itself");
    }

    #[test]
    fn a_literal_private_or_loopback_address_names_itself_only() {
        for (named, itself) in [
            ("127.0.0.1", true),
            ("10.2.3.4", true),
            ("::1", true),
            ("fd00::1", true),
            ("169.254.169.254", false),
            ("0.0.0.0", false),
            ("224.0.0.1", false),
            ("::ffff:127.0.0.1", false),
            ("fe80::1", false),
        ] {
            let mut reach = Reach::default();
            reach.name_literal(ip(named));
            assert_eq!(reach.allows(ip(named)), itself, "{named}");
            assert!(!reach.allows(ip("127.0.0.2")) && !reach.allows(ip("10.2.3.5")), "{named}");
        }
        let mut reach = Reach::default();
        reach.name_localhost();
        assert!(reach.allows(ip("127.0.0.1")) && reach.allows(ip("::1")) && !reach.allows(ip("10.0.0.1")));
    }
}
