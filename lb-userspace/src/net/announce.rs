//! Telling the neighbours who has an address: gratuitous ARP (RFC 5227) and unsolicited neighbour advertisements
//! (RFC 4861, 7.2.6), as frames on a packet socket.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use lb_common::checksum;

use crate::{Result, error::Context as _};

const BROADCAST: [u8; 6] = [0xff; 6];
/// Where frames to `ff02::1`, all nodes, go.
const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// Tells everybody on an interface's network that the interface has an address.
pub fn announce(ifindex: u32, mac: [u8; 6], address: IpAddr) -> Result<()> {
    let frame = match address {
        IpAddr::V4(v4) => gratuitous_arp(mac, v4).to_vec(),
        IpAddr::V6(v6) => unsolicited_advertisement(mac, v6).to_vec(),
    };
    send(ifindex, &frame).context(format!("tell the neighbours of {address}"))
}

/// An ARP request for the own address: whoever knows another MAC address for it takes this one.
fn gratuitous_arp(mac: [u8; 6], address: Ipv4Addr) -> [u8; 42] {
    let mut frame = [0; 42];
    frame[..6].copy_from_slice(&BROADCAST);
    frame[6..12].copy_from_slice(&mac);
    // Type ARP; hardware Ethernet, protocol IPv4, their lengths, operation "request".
    frame[12..22].copy_from_slice(&[0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1]);
    frame[22..28].copy_from_slice(&mac);
    frame[28..32].copy_from_slice(&address.octets());
    frame[38..42].copy_from_slice(&address.octets());
    frame
}

/// An advertisement to all nodes, with the override flag.
fn unsolicited_advertisement(mac: [u8; 6], address: Ipv6Addr) -> [u8; 86] {
    const LENGTH: u8 = 32;
    let mut frame = [0; 86];
    frame[..6].copy_from_slice(&ALL_NODES_MAC);
    frame[6..12].copy_from_slice(&mac);
    // Type IPv6; version 6; payload length, next header ICMPv6, hop limit 255.
    frame[12..22].copy_from_slice(&[0x86, 0xdd, 0x60, 0, 0, 0, 0, LENGTH, 58, 255]);
    frame[22..38].copy_from_slice(&address.octets());
    frame[38..54].copy_from_slice(&ALL_NODES.octets());
    // Type 136, "neighbour advertisement"; flags: override.
    frame[54] = 136;
    frame[58] = 0x20;
    frame[62..78].copy_from_slice(&address.octets());
    // Option 2, "target link-layer address", one unit of eight bytes.
    frame[78..80].copy_from_slice(&[2, 1]);
    frame[80..86].copy_from_slice(&mac);
    // Addresses and payload are one run; the pseudo header adds length and protocol.
    let words = frame[22..].chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let sum = words.sum::<u32>() + u32::from(LENGTH) + 58;
    frame[56..58].copy_from_slice(&(!checksum::fold(sum)).to_be_bytes());
    frame
}

fn send(ifindex: u32, frame: &[u8]) -> io::Result<()> {
    // SAFETY: no pointers are passed; the result is checked before it is owned.
    let socket = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made, and nobody else has it.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    let to = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: u16::from_ne_bytes([frame[12], frame[13]]),
        sll_ifindex: ifindex as i32,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: [frame[0], frame[1], frame[2], frame[3], frame[4], frame[5], 0, 0],
    };
    // SAFETY: frame and address are valid for their lengths, and only read.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            0,
            (&raw const to).cast(),
            size_of::<libc::sockaddr_ll>() as u32,
        )
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];

    #[test]
    fn an_arp_announcement_names_the_address_twice() {
        let frame = gratuitous_arp(MAC, Ipv4Addr::new(10, 0, 0, 9));
        assert_eq!(frame[..14], [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 7, 8, 6]);
        assert_eq!((&frame[28..32], &frame[38..42]), (&[10, 0, 0, 9][..], &[10, 0, 0, 9][..]));
        assert_eq!(frame[32..38], [0; 6], "the target's MAC address is what is asked for");
    }

    #[test]
    fn an_advertisements_checksum_is_right() {
        let frame = unsolicited_advertisement(MAC, "2001:db8::9".parse().unwrap());
        let sum: u32 = frame[22..].chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
        let sum = sum + 32 + 58;
        let folded = (sum & 0xffff) + (sum >> 16);
        assert_eq!((folded & 0xffff) + (folded >> 16), 0xffff, "addresses, pseudo header and message add up");
        assert_eq!((frame[54], frame[58], frame[21]), (136, 0x20, 255));
    }
}
