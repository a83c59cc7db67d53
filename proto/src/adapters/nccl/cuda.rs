//! [`Collective`] by NCCL itself. Compiled and linked; no GPU has run it yet.

use std::{collections::VecDeque, fmt::Debug, sync::Arc};

use cudarc::{
    driver::{CudaContext, CudaStream},
    nccl::{Comm, Id},
};

use super::{Collective, NCCL_ID_BYTES};
use crate::v1::NcclGroup;

/// One GPU, with a stream beside those that the model computes on.
pub(super) struct Gpu {
    stream: Arc<CudaStream>,
    /// Of the last broadcast. A communicator that is dropped takes its buffers along, and another
    /// rank may still be reading from them when this one is done; at the next broadcast none is.
    last: Option<Comm>,
    /// Of lasting groups, with their ids, the one used last at the end.
    lasting: VecDeque<(Vec<u8>, Comm)>,
}

/// Lasting groups at a time: each holds memory of the GPU, and that of a rank that has gone is never
/// used again.
const MOST_LASTING: usize = 16;

impl Gpu {
    /// The GPU is made this thread's current one, which NCCL goes by.
    pub(super) fn open(ordinal: usize) -> Result<Self, String> {
        let context = CudaContext::new(ordinal).map_err(problem("its GPU"))?;
        let stream = context.new_stream().map_err(problem("a CUDA stream"))?;
        Ok(Self {
            stream,
            last: None,
            lasting: VecDeque::new(),
        })
    }
}

impl Collective for Gpu {
    fn new_id(&mut self) -> Result<Vec<u8>, String> {
        let id = Id::new().map_err(|error| problem("a group's id")(error.0))?;
        Ok(id.internal().iter().map(|&byte| byte as u8).collect())
    }

    fn broadcast(&mut self, group: &NcclGroup, mut bytes: Vec<u8>) -> Result<Vec<u8>, String> {
        let known = self.lasting.iter().position(|(id, _)| *id == group.id);
        let comm = match known.and_then(|at| self.lasting.remove(at)) {
            Some((_, comm)) => comm,
            None => self.join(group)?,
        };
        let stream = &self.stream;
        let mut buffer = stream.clone_htod(&bytes).map_err(problem("GPU memory"))?;
        comm.broadcast_in_place(&mut buffer, 0)
            .map_err(|error| problem("the broadcast")(error.0))?;
        stream
            .memcpy_dtoh(&buffer, &mut bytes)
            .map_err(problem("copying from the GPU"))?;
        stream.synchronize().map_err(problem("the broadcast"))?;
        if group.lasting {
            self.lasting.push_back((group.id.clone(), comm));
        } else {
            self.last = Some(comm);
        }
        Ok(bytes)
    }
}

impl Gpu {
    fn join(&mut self, group: &NcclGroup) -> Result<Comm, String> {
        if group.lasting {
            if self.lasting.len() >= MOST_LASTING {
                self.lasting.pop_front();
            }
        } else {
            self.last = None;
        }
        let mut id = [0; NCCL_ID_BYTES];
        for (to, from) in id.iter_mut().zip(&group.id) {
            *to = *from as std::ffi::c_char;
        }
        let (rank, world) = (group.rank as usize, group.world as usize);
        Comm::from_rank(self.stream.clone(), rank, world, Id::uninit(id))
            .map_err(|error| problem("joining the group")(error.0))
    }
}

fn problem<E: Debug>(what: &'static str) -> impl FnOnce(E) -> String {
    move |error| format!("{what}: {error:?}")
}
