//! The sockets of our network namespace as `/proc/net/tcp` and `tcp6` list them
//! (proc_net(5)), both ends of a connection within the machine among them:
//!
//! ```text
//! sl  local_address  rem_address    st  tx:rx  tr:tm  retrnsmt  uid  timeout  inode
//!  7: 0100007F:2328  0100007F:C350  01  ...                       0        0   4711   ours
//!  9: 0100007F:C350  0100007F:2328  01  ...                    1000        0   4712   the peer's
//! ```
//!
//! To write them the kernel walks its whole table, however empty that is: milliseconds on
//! a machine with much memory.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{End, Socket, plain};

/// The other end of our connection, if the lists have that and ours.
pub(super) fn find(
    ours: &End,
    lists: impl IntoIterator<Item = io::Result<impl BufRead>>,
) -> io::Result<Option<Socket>> {
    let (mut theirs, mut is_ours_there) = (None, false);
    for list in lists {
        for text in list?.lines() {
            let Some(socket) = parse(&text?) else {
                continue;
            };
            is_ours_there |= ours.is(&socket);
            theirs = theirs.or(Some(socket).filter(|socket| ours.is_other_end(socket)));
        }
    }
    Ok(theirs.filter(|_| is_ours_there))
}

/// Those of both kinds of addresses: one end of a connection may be in the one list, the
/// other in the other. A kernel without IPv6 has only the first.
pub(super) fn open() -> impl Iterator<Item = io::Result<BufReader<File>>> {
    ["/proc/self/net/tcp", "/proc/self/net/tcp6"]
        .into_iter()
        .map(|path| File::open(path).map(BufReader::new))
        .filter(|list| !matches!(list, Err(error) if error.kind() == io::ErrorKind::NotFound))
}

/// `None`: the heading, or no line of such a list.
fn parse(text: &str) -> Option<Socket> {
    let mut fields = text.split_whitespace().skip(1);
    let (local, remote) = (address(fields.next()?)?, address(fields.next()?)?);
    let state = u8::from_str_radix(fields.next()?, 16).ok()?;
    let mut fields = fields.skip(3);
    let uid = fields.next()?.parse().ok()?;
    let inode = fields.nth(1)?.parse().ok()?;
    Some(Socket {
        local,
        remote,
        state,
        uid,
        inode,
    })
}

/// `0100007F:2328`: the address in words of 32 bits as this CPU reads them, the port as a
/// number.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| u32::from_str_radix(ip.get(at * 8..at * 8 + 8)?, 16).ok();
    let ip: IpAddr = match ip.len() {
        8 => Ipv4Addr::from(word(0)?.to_ne_bytes()).into(),
        32 => {
            let mut bytes = [0; 16];
            for (at, chunk) in bytes.chunks_exact_mut(4).enumerate() {
                chunk.copy_from_slice(&word(at)?.to_ne_bytes());
            }
            Ipv6Addr::from(bytes).into()
        }
        _ => return None,
    };
    Some(plain(SocketAddr::new(ip, port)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::{ESTABLISHED, FIN_WAIT2};
    use super::*;

    /// A line as the kernel writes it, with an address in the order of this CPU.
    fn line(local: &str, remote: &str, state: u8, uid: u32, inode: u64) -> String {
        let words = |text: &str| {
            let address: SocketAddr = text.parse().unwrap();
            let bytes = match address.ip() {
                IpAddr::V4(ip) => ip.octets().to_vec(),
                IpAddr::V6(ip) => ip.octets().to_vec(),
            };
            let words = bytes.chunks(4).map(|word| {
                let word = u32::from_ne_bytes(word.try_into().unwrap());
                format!("{word:08X}")
            });
            format!("{}:{:04X}", words.collect::<String>(), address.port())
        };
        format!(
            "   9: {} {} {state:02X} 00000000:00000000 00:00000000 00000000 {uid:5}        0 \
             {inode} 1 0000000000000000 100 0 0 10 0\n",
            words(local),
            words(remote)
        )
    }

    const HEADING: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when \
                           retrnsmt   uid  timeout inode\n";
    const US: &str = "127.0.0.1:9000";
    const THEM: &str = "127.0.0.1:50000";
    const US_V6: &str = "[::ffff:127.0.0.1]:9000";
    const THEM_V6: &str = "[::ffff:127.0.0.1]:50000";

    /// Whom the lists say we are connected to.
    fn found(lists: &[String]) -> Option<u32> {
        let ours = End {
            local: US.parse().unwrap(),
            remote: THEM.parse().unwrap(),
            inode: 4711,
        };
        let lists = lists.iter().map(|list| Ok(list.as_bytes()));
        find(&ours, lists).unwrap().map(|socket| socket.uid)
    }

    fn ours() -> String {
        line(US, THEM, ESTABLISHED, 0, 4711)
    }

    fn theirs(state: u8, uid: u32, inode: u64) -> String {
        line(THEM, US, state, uid, inode)
    }

    #[test]
    fn addresses_are_read_as_this_cpu_writes_them() {
        if cfg!(target_endian = "little") {
            assert_eq!(address("0100007F:2328"), Some(US.parse().unwrap()));
            assert_eq!(
                address("00000000000000000000000001000000:0050"),
                Some("[::1]:80".parse().unwrap())
            );
            let mapped = "0000000000000000FFFF00000100007F:2328";
            assert_eq!(address(mapped), Some(US.parse().unwrap()));
        }
        for bad in [
            "",
            "0100007F",
            "0100007F:",
            "0100007:1",
            "é00007F:1",
            "0100007F:10000",
        ] {
            assert_eq!(address(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_other_end_is_found_in_either_list() {
        let theirs = theirs(ESTABLISHED, 1000, 5);
        let stray = line("127.0.0.1:50001", US, ESTABLISHED, 7, 6);
        assert_eq!(
            found(&[format!("{HEADING}{stray}{theirs}{}", ours())]),
            Some(1000)
        );
        assert_eq!(
            found(&[format!("{HEADING}{}", ours()), theirs.clone()]),
            Some(1000)
        );
        let ours_v6 = line(US_V6, THEM_V6, ESTABLISHED, 0, 4711);
        assert_eq!(
            found(&[format!("{HEADING}{theirs}"), ours_v6.clone()]),
            Some(1000)
        );
        let theirs_v6 = line(THEM_V6, US_V6, ESTABLISHED, 1001, 5);
        assert_eq!(found(&[HEADING.into(), ours_v6 + &theirs_v6]), Some(1001));
    }

    #[test]
    fn only_a_socket_of_this_very_connection_counts() {
        for (what, text, want) in [
            (
                "half closed",
                ours() + &theirs(FIN_WAIT2, 1000, 5),
                Some(1000),
            ),
            (
                "closed: uid 0 and no inode",
                ours() + &theirs(FIN_WAIT2, 0, 0),
                None,
            ),
            ("closed and waiting", ours() + &theirs(6, 0, 0), None),
            ("a new one, not connected", ours() + &theirs(2, 0, 9), None),
            ("none", ours(), None),
            ("not ours", theirs(ESTABLISHED, 0, 9), None),
            (
                "ours was another",
                line(US, THEM, ESTABLISHED, 0, 4712) + &theirs(ESTABLISHED, 0, 9),
                None,
            ),
            (
                "ours is reset",
                line(US, THEM, 7, 0, 4711) + &theirs(ESTABLISHED, 0, 9),
                None,
            ),
            (
                "another port of ours",
                ours() + &line(THEM, "127.0.0.1:9001", ESTABLISHED, 0, 9),
                None,
            ),
        ] {
            assert_eq!(found(&[text]), want, "{what}");
        }
    }

    #[test]
    fn no_text_makes_it_panic() {
        let line = theirs(ESTABLISHED, 1000, 5);
        for end in 0..line.len() {
            let _ = parse(&line[..end]);
            let _ = parse(&line[end..]);
        }
        assert_eq!(parse(HEADING), None);
        assert_eq!(parse("a b:c d:e"), None);
    }
}
