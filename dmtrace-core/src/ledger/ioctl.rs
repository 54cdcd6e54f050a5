//! What ioctls and uevents of device-mapper do to the books of a cookie.

use super::{
    ActorRef, Change, ChangeKind, Cookie, CookieCall, Device, Ledger, Name, apply::no_set,
    cookie::MAX_DEVICES, operate::CallSeen,
};
use crate::{
    event::{DmCommand, DmIoctl, Event, Uevent},
    ids::{DevNum, Key, SemId},
};

/// What is done to which device.
struct DeviceUse<'a> {
    name: &'a str,
    uuid: Option<&'a str>,
    number: Option<DevNum>,
    command: DmCommand,
}

impl Ledger {
    /// An ioctl with a cookie returned.
    pub(super) fn apply_ioctl(&mut self, event: &Event, ioctl: &DmIoctl, out: &mut Vec<Change>) {
        let sem = self.cookie_of(ioctl.sem, ioctl.key);
        if event.quality.from_map {
            self.device_of_map(event, sem, ioctl);
            return;
        }
        self.on_device(event, sem, ioctl.key, out, |cookie, call| {
            cookie.record_ioctl(call, ioctl);
            ChangeKind::Ioctl {
                command: ioctl.command,
                errno: ioctl.errno,
                unseen: event.quality.no_result,
                uevent: ioctl.uevent,
                deferred: ioctl.deferred,
                name: Name::from(ioctl.name.as_str()),
                new_name: ioctl.new_name.as_deref().map(Name::from),
                uuid: ioctl.uuid.as_deref().map(Name::from),
                device: ioctl.device,
            }
        });
    }

    /// A uevent with a cookie is about to be sent.
    pub(super) fn apply_uevent(&mut self, event: &Event, uevent: &Uevent, out: &mut Vec<Change>) {
        let sem = self.cookie_of(uevent.sem, uevent.key);
        self.on_device(event, sem, uevent.key, out, |cookie, call| {
            cookie.record_uevent(call, uevent);
            ChangeKind::Uevent {
                action: uevent.action,
                name: Name::from(uevent.name.as_str()),
                uuid: uevent.uuid.as_deref().map(Name::from),
                device: uevent.device,
            }
        });
    }

    /// The last device by the kernel map, where the message was not received. The sums are in the
    /// record of the set.
    fn device_of_map(&mut self, event: &Event, sem: SemId, ioctl: &DmIoctl) {
        let who = self.actor_of_event(event);
        let known = match self.live.get_mut(&sem).map(Box::as_mut) {
            Some(known) => Some(known),
            None => self.history.latest_mut(sem),
        };
        let Some(known) = known.filter(|known| known.key == ioctl.key) else {
            return;
        };
        let closed = known.ending.is_some();
        let Some(cookie) = known.cookie.as_deref_mut() else {
            return;
        };
        let call = CallSeen {
            at: event.at,
            began: event.at,
            who: who.as_ref(),
            creator: None,
            quality: event.quality,
            errno: 0,
        };
        cookie.settle_ioctl(call, ioctl);
        if let Some(who) = &who {
            self.hold_image(sem, who.image, closed);
        }
    }

    /// The set that a key means in the caller's namespace, where the kernel side does not know.
    fn cookie_of(&self, sem: SemId, key: Key) -> SemId {
        if sem.semid >= 0 {
            return sem;
        }
        let live = self.with_key(key).find(|known| known.id.ns == sem.ns);
        live.map_or(sem, |known| known.id)
    }

    /// Enters what happened into a cookie that is in the books, live or just gone. Never opens an
    /// account: an ioctl with a number that is no cookie's proves nothing.
    fn on_device(
        &mut self,
        event: &Event,
        sem: SemId,
        key: Key,
        out: &mut Vec<Change>,
        action: impl FnOnce(&mut Cookie, CallSeen<'_>) -> ChangeKind,
    ) {
        let at = event.at;
        let who = self.actor_of_event(event);
        let live = self
            .live
            .get(&sem)
            .is_some_and(|known| known.key == key && known.created.is_none_or(|it| it <= at));
        let known = if live {
            self.live.get_mut(&sem).map(Box::as_mut)
        } else {
            self.history.latest_mut(sem).filter(|known| {
                known.key == key
                    && known.created.is_none_or(|it| it <= at)
                    && known.ending.as_ref().is_some_and(|end| end.at >= at)
            })
        };
        let mut stray = Cookie::default();
        let found = known.is_some();
        let cookie = match known {
            Some(known) => {
                known.last_seen = known.last_seen.max(at);
                known.cookie.as_deref_mut().unwrap_or(&mut stray)
            }
            None => &mut stray,
        };
        let call = CallSeen {
            at,
            began: at,
            who: who.as_ref(),
            creator: None,
            quality: event.quality,
            errno: 0,
        };
        let kind = action(cookie, call);
        if found && let Some(who) = &who {
            self.hold_image(sem, who.image, !live);
        }
        let sem = if found { sem } else { no_set(sem.ns) };
        out.push(Change {
            at,
            sem,
            key,
            who,
            kind,
        });
    }
}

impl Cookie {
    fn record_ioctl(&mut self, call: CallSeen<'_>, ioctl: &DmIoctl) {
        if call.at > self.dm_synced {
            self.counts.ioctls = self.counts.ioctls.saturating_add(1);
            if ioctl.errno != 0 {
                self.counts.ioctls_failed = self.counts.ioctls_failed.saturating_add(1);
            }
            if ioctl.uevent {
                self.counts.uevents = self.counts.uevents.saturating_add(1);
            }
        }
        self.settle_ioctl(call, ioctl);
        self.push_dm_step(
            call,
            CookieCall::Ioctl {
                command: ioctl.command,
                device: ioctl.device,
                uevent: ioctl.uevent,
            },
            ioctl.errno,
        );
    }

    /// Enters the result of an ioctl at its device.
    fn settle_ioctl(&mut self, call: CallSeen<'_>, ioctl: &DmIoctl) {
        let seen = DeviceUse {
            name: &ioctl.name,
            uuid: ioctl.uuid.as_deref(),
            number: ioctl.device,
            command: ioctl.command,
        };
        if let Some(device) = self.device_entry(&seen, call) {
            let unseen = call.quality.no_result && !ioctl.uevent;
            device.errno = (!unseen).then_some(ioctl.errno);
            device.uevent = ioctl.uevent;
            device.deferred = ioctl.deferred && !ioctl.uevent && ioctl.errno == 0;
            if !ioctl.uevent {
                device.action = None;
            }
            if let Some(name) = &ioctl.new_name {
                device.name = Name::from(name.as_str());
            }
        }
    }

    fn record_uevent(&mut self, call: CallSeen<'_>, uevent: &Uevent) {
        let seen = DeviceUse {
            name: &uevent.name,
            uuid: uevent.uuid.as_deref(),
            number: uevent.device,
            command: uevent.command,
        };
        if let Some(device) = self.device_entry(&seen, call) {
            device.action = Some(uevent.action);
            device.errno = None;
        }
        self.push_dm_step(
            call,
            CookieCall::Uevent {
                action: uevent.action,
                device: uevent.device,
            },
            0,
        );
    }

    /// The entry of a device, the last one in the list from now on.
    fn device_entry(&mut self, seen: &DeviceUse<'_>, call: CallSeen<'_>) -> Option<&mut Device> {
        // By name first: within one cookie lvm removes dm-0 and makes another dm-0.
        let unsettled = |device: &Device| {
            let same = |who: &ActorRef| call.who.is_some_and(|it| it.tid == who.tid);
            device.errno.is_none() && device.who.as_ref().is_some_and(same)
        };
        let nameless = seen.name.is_empty() && seen.number.is_none();
        let same = |device: &Device| match device.name.as_str() {
            // Not seen to return, and named by its number: its uevent has told the name.
            _ if nameless => unsettled(device),
            name if !name.is_empty() && !seen.name.is_empty() => name == seen.name,
            _ => seen.number.is_some() && device.number == seen.number,
        };
        let mut device = match self.devices.iter().position(same) {
            Some(index) => self.devices.remove(index),
            None => {
                if self.devices.len() >= MAX_DEVICES {
                    // One that failed, or whose uevent is out, tells more than one that is done.
                    let dull = self.devices.iter().position(|it| it.errno == Some(0));
                    self.devices.remove(dull.unwrap_or(0));
                    self.devices_more = self.devices_more.saturating_add(1);
                }
                Device {
                    name: Name::from(seen.name),
                    uuid: None,
                    number: None,
                    command: seen.command,
                    at: call.at,
                    who: None,
                    errno: None,
                    uevent: false,
                    action: None,
                    deferred: false,
                }
            }
        };
        if device.name.as_str().is_empty() {
            device.name = Name::from(seen.name);
        }
        device.uuid = seen.uuid.map(Name::from).or(device.uuid);
        device.number = seen.number.or(device.number);
        device.command = seen.command;
        device.at = call.at;
        device.who = call.who.cloned().or(device.who);
        self.devices.push(device);
        self.devices.last_mut()
    }

    /// A step that does not touch the semaphore: it is activity on the cookie all the same.
    fn push_dm_step(&mut self, call: CallSeen<'_>, what: CookieCall, errno: i32) {
        let last = self.last_call;
        self.push_step(call.at, call.who, what, errno);
        // The kernel's value is not older for it: a snapshot stays comparable.
        self.last_call = last;
        self.last_dm = Some(super::later_time(self.last_dm, call.at));
    }
}
