//! The maps of a tracer: of this process's, or of a running one found by map number.

use std::{collections::BTreeMap, sync::Arc};

use anyhow::{Context, Result};
use aya::maps::{HashMap, Map, MapData};
use dmtrace_common::{
    DmEvent, EVENT_FROM_MAP, LookupKey, ProcKey, ProcRecord, SITE_LEN, SemEvent, SemKey, SemRecord,
    SiteText,
};
use dmtrace_core::event::CallSite;
use serde::{Deserialize, Serialize};

use super::{
    undisturbed::call_undisturbed,
    walk::{all_records, for_each_record},
};

/// A record of the semaphore map.
pub(crate) type SemEntry = (SemKey, SemRecord);
/// A record of the process map.
pub(crate) type ProcEntry = (ProcKey, ProcRecord);

/// The maps that hold the truth.
pub(crate) struct Maps {
    sems: HashMap<MapData, SemKey, SemRecord>,
    procs: HashMap<MapData, ProcKey, ProcRecord>,
    devices: HashMap<MapData, SemKey, DmEvent>,
    lookups: HashMap<MapData, LookupKey, SemEvent>,
    sites: HashMap<MapData, SemKey, SiteText>,
}

/// Numbers by which another process opens the maps.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub(crate) struct MapIds {
    /// Of the semaphore map.
    pub sems: u32,
    /// Of the process map.
    pub procs: u32,
    /// Of the map with the last device of each cookie.
    pub devices: u32,
    /// Of the map with the failed lookups.
    pub lookups: u32,
    /// Of the map with the call site of each cookie.
    pub sites: u32,
}

/// The maps themselves, before their types are checked.
pub(super) struct MapParts {
    pub(super) sems: Map,
    pub(super) procs: Map,
    pub(super) devices: Map,
    pub(super) lookups: Map,
    pub(super) sites: Map,
}

impl Maps {
    pub(super) fn new(parts: MapParts) -> Result<Self> {
        Ok(Self {
            sems: HashMap::try_from(parts.sems)?,
            procs: HashMap::try_from(parts.procs)?,
            devices: HashMap::try_from(parts.devices)?,
            lookups: HashMap::try_from(parts.lookups)?,
            sites: HashMap::try_from(parts.sites)?,
        })
    }

    /// Opens the maps of a running tracer.
    ///
    /// # Errors
    /// The tracer has ended, or this process lacks `CAP_SYS_ADMIN`.
    pub(crate) fn open(ids: MapIds) -> Result<Self> {
        let open = |id| MapData::from_id(id).with_context(|| format!("BPF map {id}"));
        Self::new(MapParts {
            sems: Map::HashMap(open(ids.sems)?),
            procs: Map::HashMap(open(ids.procs)?),
            devices: Map::LruHashMap(open(ids.devices)?),
            lookups: Map::LruHashMap(open(ids.lookups)?),
            sites: Map::HashMap(open(ids.sites)?),
        })
    }

    pub(super) fn map_ids(parts: &MapParts) -> Result<MapIds> {
        let id = |map: &Map| -> Result<u32> {
            let (Map::HashMap(data) | Map::LruHashMap(data)) = map else {
                anyhow::bail!("not a hash map")
            };
            Ok(data.info()?.id())
        };
        Ok(MapIds {
            sems: id(&parts.sems)?,
            procs: id(&parts.procs)?,
            devices: id(&parts.devices)?,
            lookups: id(&parts.lookups)?,
            sites: id(&parts.sites)?,
        })
    }

    /// All semaphore records. Records that come or go meanwhile may be missed or seen twice, as
    /// with any walk through a live BPF hash; callers key by identity.
    pub(crate) fn sem_records(&self) -> Vec<SemEntry> {
        all_records(&self.sems)
    }

    pub(crate) fn proc_records(&self) -> Vec<ProcEntry> {
        all_records(&self.procs)
    }

    /// The last device-mapper ioctl with each cookie, as far as there was room.
    pub(crate) fn last_ioctls(&self) -> Vec<DmEvent> {
        all_records(&self.devices)
            .into_iter()
            .map(|(_, mut event)| {
                event.header.flags |= EVENT_FROM_MAP;
                event
            })
            .filter(|event| event.header.ts != 0)
            .collect()
    }

    /// The last failed lookups of cookies, the oldest first, as far as there was room.
    pub(crate) fn failed_lookups(&self) -> Vec<SemEvent> {
        let mut lookups: Vec<SemEvent> = all_records(&self.lookups)
            .into_iter()
            .map(|(_, event)| event)
            .collect();
        lookups.sort_by_key(|event| event.header.ts);
        lookups
    }

    /// The last device-mapper ioctl with one cookie.
    pub(crate) fn last_ioctl(&self, key: SemKey) -> Option<DmEvent> {
        let mut event = call_undisturbed(|| self.devices.get(&key, 0)).ok()?;
        event.header.flags |= EVENT_FROM_MAP;
        (event.header.ts != 0).then_some(event)
    }

    pub(crate) fn sem_record(&self, key: SemKey) -> Option<SemRecord> {
        call_undisturbed(|| self.sems.get(&key, 0)).ok()
    }

    pub(crate) fn proc_record(&self, key: ProcKey) -> Option<ProcRecord> {
        call_undisturbed(|| self.procs.get(&key, 0)).ok()
    }

    /// Call sites, with the creation of their sets. Those of many cookies are the same: each is
    /// read once.
    pub(crate) fn call_sites(&self) -> Vec<(SemKey, u64, Arc<CallSite>)> {
        let mut known: BTreeMap<Vec<u8>, Option<Arc<CallSite>>> = BTreeMap::new();
        let mut sites = Vec::new();
        for_each_record(&self.sites, |key, site| {
            let json = &site.text[..(site.len as usize).min(SITE_LEN)];
            if !known.contains_key(json) {
                let read = serde_json::from_slice(json).ok().map(Arc::new);
                known.insert(json.to_vec(), read);
            }
            if let Some(Some(read)) = known.get(json) {
                sites.push((*key, site.created, Arc::clone(read)));
            }
        });
        sites
    }

    /// Lets other processes see a call site; `false` if it does not fit.
    pub(crate) fn put_site(&mut self, key: SemKey, created: u64, json: &[u8]) -> bool {
        let mut site = SiteText {
            created,
            len: json.len() as u32,
            _pad: 0,
            text: [0; SITE_LEN],
        };
        let Some(text) = site.text.get_mut(..json.len()) else {
            return false;
        };
        text.copy_from_slice(json);
        call_undisturbed(|| self.sites.insert(&key, &site, 0)).is_ok()
    }

    /// Removes the call site of a set that is gone.
    pub(crate) fn remove_site(&mut self, key: SemKey) {
        let _none = call_undisturbed(|| self.sites.remove(&key));
    }

    /// Enters a set that is older than the tracer; leaves a record alone that the kernel side
    /// has written meanwhile. Tells whether it was entered.
    pub(super) fn seed_record(&mut self, key: SemKey, record: SemRecord) -> bool {
        const BPF_NOEXIST: u64 = 1;
        call_undisturbed(|| self.sems.insert(&key, &record, BPF_NOEXIST)).is_ok()
    }

    pub(super) fn remove_sem(&mut self, key: SemKey) -> bool {
        call_undisturbed(|| {
            let _none = self.devices.remove(&key);
            let _none = self.sites.remove(&key);
            self.sems.remove(&key).is_ok()
        })
    }

    pub(super) fn remove_proc(&mut self, key: ProcKey) -> bool {
        call_undisturbed(|| self.procs.remove(&key)).is_ok()
    }
}
