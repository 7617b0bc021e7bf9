//! What the verifier walks through once, whoever calls it: functions with external linkage, which cannot be generic.
//! Each family has its own thin copies of them here; everywhere else they are methods of a family.
//!
//! Such a function takes numbers, the context and pointers to plain values (at most five), and gives a number. Whoever
//! calls it has lost nothing but its pointers into the packet.

use aya_ebpf::{EbpfContext as _, bindings::xdp_md, programs::XdpContext};
use lb_common::{
    family::{Family, V4, V6},
    flow::{NO_SLOT, Opening, Tuple},
    reason::Reason,
};

use crate::{
    answer, direct, direct::Parcel, icmp, icmp::Problem, parse::Packet, pipeline, ports, records, rest, service, table,
    tunnel,
};

/// A family's copies.
pub trait Once: Family {
    /// [`table::find`].
    fn find(tuple: &Tuple<Self>, except: u32) -> u64;
    /// [`table::insert`].
    fn insert(tuple: &Tuple<Self>, direction: u32, index: u32) -> u32;
    /// [`service::begin`].
    fn begin(ctx: &XdpContext, packet: &Packet<Self>) -> Result<u32, Reason>;
    /// [`pipeline::first`].
    fn first(ctx: &XdpContext, index: u32) -> Reason;
    /// [`ports::allocate`].
    fn allocate(id: u32, preferred: u32, opening: &Opening, tuple: &mut Tuple<Self>) -> u32;
    /// [`ports::prefer`].
    fn prefer(id: u32, preferred: u32, tuple: &mut Tuple<Self>) -> u32;
    /// [`rest::begin`].
    fn rest(ctx: &XdpContext, index: u32, transport: usize, length: u32) -> u32;
    /// [`records::claim`].
    fn claim() -> u32;
    /// [`records::release`].
    fn release(index: u32, seq: u32) -> u32;
    /// [`answer::reset`].
    fn reset(ctx: &XdpContext, packet: &Packet<Self>, reason: Reason) -> Reason;
    /// [`icmp::error`].
    fn error(ctx: &XdpContext, problem: Problem, transport: usize, service: u32, rest: u32) -> Reason;
    /// [`icmp::receive`].
    fn receive(ctx: &XdpContext, at: usize) -> Reason;
    /// [`tunnel::about`].
    fn about(ctx: &XdpContext, at: usize) -> Reason;
    /// [`tunnel::told`].
    fn told(ctx: &XdpContext, inner: usize, mtu: u32) -> Reason;
    /// [`direct::deliver`].
    fn deliver(ctx: &XdpContext, parcel: &Parcel, id: u32, of_mode: u8) -> u32;
}

/// Not a reason, but a record's number.
const RECORD: u32 = 1 << 31;

macro_rules! once {
    ($family:ty: $find:ident $insert:ident $begin:ident $first:ident $allocate:ident $prefer:ident $rest:ident $claim:ident $release:ident $reset:ident
     $error:ident $receive:ident $about:ident $told:ident $deliver:ident) => {
        #[inline(never)]
        #[unsafe(no_mangle)]
        extern "C" fn $find(tuple: *const Tuple<$family>, except: u32) -> u64 {
            // SAFETY: null or a tuple of the caller's; the verifier checks both this function and its callers.
            unsafe { tuple.as_ref() }.map_or(0, |tuple| table::find(tuple, except))
        }

        #[inline(never)]
        #[unsafe(no_mangle)]
        extern "C" fn $insert(tuple: *const Tuple<$family>, direction: u32, index: u32) -> u32 {
            // SAFETY: as above.
            unsafe { tuple.as_ref() }.map_or(NO_SLOT, |tuple| table::insert(tuple, direction, index))
        }

        #[inline(never)]
        #[unsafe(no_mangle)]
        extern "C" fn $begin(ctx: *mut xdp_md, packet: *const Packet<$family>) -> u32 {
            // SAFETY: as above.
            let Some(packet) = (unsafe { packet.as_ref() }) else { return Reason::HelperFailed as u32 };
            match service::begin(&XdpContext::new(ctx), packet) {
                Ok(index) => RECORD | index,
                Err(reason) => reason as u32,
            }
        }

        #[inline(never)]
        #[unsafe(no_mangle)]
        extern "C" fn $first(ctx: *mut xdp_md, index: u32) -> u32 {
            pipeline::first::<$family>(&XdpContext::new(ctx), index) as u32
        }

        #[inline(never)]
        #[unsafe(no_mangle)]
        extern "C" fn $allocate(id: u32, preferred: u32, opening: *const Opening, tuple: *mut Tuple<$family>) -> u32 {
            // SAFETY: as above.
            let (opening, tuple) = unsafe { (opening.as_ref(), tuple.as_mut()) };
            let (Some(opening), Some(tuple)) = (opening, tuple) else { return 0 };
            ports::allocate(id, preferred, opening, tuple)
        }

        #[inline(never)]
        #[unsafe(no_mangle)]
        extern "C" fn $prefer(id: u32, preferred: u32, tuple: *mut Tuple<$family>) -> u32 {
            // SAFETY: as above.
            unsafe { tuple.as_mut() }.map_or(0, |tuple| ports::prefer(id, preferred, tuple))
        }

        #[inline(never)]
        #[unsafe(no_mangle)]
        extern "C" fn $rest(ctx: *mut xdp_md, index: u32, transport: u32, length: u32) -> u32 {
            rest::begin::<$family>(&XdpContext::new(ctx), index, transport as usize & 0x7fff, length)
        }

        #[inline(never)]
        #[unsafe(no_mangle)]
        extern "C" fn $claim() -> u32 {
            records::claim::<$family>()
        }

        #[inline(never)]
        #[unsafe(no_mangle)]
        extern "C" fn $release(index: u32, seq: u32) -> u32 {
            records::release::<$family>(index, seq)
        }

        #[inline(never)]
        #[unsafe(no_mangle)]
        extern "C" fn $reset(ctx: *mut xdp_md, packet: *const Packet<$family>, reason: u32) -> u32 {
            // SAFETY: as above.
            let Some(packet) = (unsafe { packet.as_ref() }) else { return Reason::HelperFailed as u32 };
            answer::reset(&XdpContext::new(ctx), packet, Reason::from_number(reason)) as u32
        }

        #[inline(never)]
        #[unsafe(no_mangle)]
        extern "C" fn $error(ctx: *mut xdp_md, problem: u32, transport: u32, service: u32, rest: u32) -> u32 {
            let problem = Problem::from_number(problem);
            icmp::error::<$family>(&XdpContext::new(ctx), problem, transport, service, rest) as u32
        }

        #[inline(never)]
        #[unsafe(no_mangle)]
        extern "C" fn $receive(ctx: *mut xdp_md, at: u32) -> u32 {
            icmp::receive::<$family>(&XdpContext::new(ctx), at as usize & 0x7fff) as u32
        }

        #[inline(never)]
        #[unsafe(no_mangle)]
        extern "C" fn $about(ctx: *mut xdp_md, at: u32) -> u32 {
            tunnel::about::<$family>(&XdpContext::new(ctx), at as usize & 0x7fff) as u32
        }

        #[inline(never)]
        #[unsafe(no_mangle)]
        extern "C" fn $told(ctx: *mut xdp_md, inner: u32, mtu: u32) -> u32 {
            tunnel::told::<$family>(&XdpContext::new(ctx), inner as usize & 0x7fff, mtu) as u32
        }

        #[inline(never)]
        #[unsafe(no_mangle)]
        extern "C" fn $deliver(ctx: *mut xdp_md, parcel: *const Parcel, id: u32, of_mode: u32) -> u32 {
            // SAFETY: as above.
            let Some(parcel) = (unsafe { parcel.as_ref() }) else { return Reason::HelperFailed as u32 };
            direct::deliver::<$family>(&XdpContext::new(ctx), parcel, id, of_mode as u8)
        }

        impl Once for $family {
            #[inline(always)]
            fn find(tuple: &Tuple<Self>, except: u32) -> u64 {
                $find(tuple, except)
            }

            #[inline(always)]
            fn insert(tuple: &Tuple<Self>, direction: u32, index: u32) -> u32 {
                $insert(tuple, direction, index)
            }

            #[inline(always)]
            fn begin(ctx: &XdpContext, packet: &Packet<Self>) -> Result<u32, Reason> {
                match $begin(ctx.as_ptr().cast(), packet) {
                    number if number & RECORD != 0 => Ok(number & !RECORD),
                    number => Err(Reason::from_number(number)),
                }
            }

            #[inline(always)]
            fn first(ctx: &XdpContext, index: u32) -> Reason {
                Reason::from_number($first(ctx.as_ptr().cast(), index))
            }

            #[inline(always)]
            fn allocate(id: u32, preferred: u32, opening: &Opening, tuple: &mut Tuple<Self>) -> u32 {
                $allocate(id, preferred, opening, tuple)
            }

            #[inline(always)]
            fn prefer(id: u32, preferred: u32, tuple: &mut Tuple<Self>) -> u32 {
                $prefer(id, preferred, tuple)
            }

            #[inline(always)]
            fn rest(ctx: &XdpContext, index: u32, transport: usize, length: u32) -> u32 {
                $rest(ctx.as_ptr().cast(), index, transport as u32, length)
            }

            #[inline(always)]
            fn claim() -> u32 {
                $claim()
            }

            #[inline(always)]
            fn release(index: u32, seq: u32) -> u32 {
                $release(index, seq)
            }

            #[inline(always)]
            fn reset(ctx: &XdpContext, packet: &Packet<Self>, reason: Reason) -> Reason {
                Reason::from_number($reset(ctx.as_ptr().cast(), packet, reason as u32))
            }

            #[inline(always)]
            fn error(ctx: &XdpContext, problem: Problem, transport: usize, service: u32, rest: u32) -> Reason {
                let reason = $error(ctx.as_ptr().cast(), problem as u32, transport as u32, service, rest);
                Reason::from_number(reason)
            }

            #[inline(always)]
            fn receive(ctx: &XdpContext, at: usize) -> Reason {
                Reason::from_number($receive(ctx.as_ptr().cast(), at as u32))
            }

            #[inline(always)]
            fn about(ctx: &XdpContext, at: usize) -> Reason {
                Reason::from_number($about(ctx.as_ptr().cast(), at as u32))
            }

            #[inline(always)]
            fn told(ctx: &XdpContext, inner: usize, mtu: u32) -> Reason {
                Reason::from_number($told(ctx.as_ptr().cast(), inner as u32, mtu))
            }

            #[inline(always)]
            fn deliver(ctx: &XdpContext, parcel: &Parcel, id: u32, of_mode: u8) -> u32 {
                $deliver(ctx.as_ptr().cast(), parcel, id, u32::from(of_mode))
            }
        }
    };
}

once!(V4: find4 insert4 begin4 first4 allocate4 prefer4 rest4 claim4 release4 reset4 error4 receive4 about4 told4 deliver4);
once!(V6: find6 insert6 begin6 first6 allocate6 prefer6 rest6 claim6 release6 reset6 error6 receive6 about6 told6 deliver6);
