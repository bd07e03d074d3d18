//! Events of a device.

use std::fmt;

use crate::sys::*;

/// What happened. Any number, because newer libraries may have more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AsyncEventType(pub u32);

macro_rules! types {
    ($($name:ident = $raw:ident, $text:literal;)*) => {
        impl AsyncEventType {
            $(#[doc = concat!("`", stringify!($raw), "`: ", $text, ".")] pub const $name: Self = Self($raw);)*

            /// In words; "unknown" for a number that is newer than this crate.
            pub fn text(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                    _ => "unknown",
                }
            }
        }
    };
}

types! {
    QUEUE_ERROR = IBV_EVENT_CQ_ERR, "completion queue error";
    QUEUE_PAIR_FATAL = IBV_EVENT_QP_FATAL, "queue pair error";
    QUEUE_PAIR_REQUEST = IBV_EVENT_QP_REQ_ERR, "invalid request at a queue pair";
    QUEUE_PAIR_ACCESS = IBV_EVENT_QP_ACCESS_ERR, "access violation at a queue pair";
    ESTABLISHED = IBV_EVENT_COMM_EST, "first message at a queue pair";
    SEND_QUEUE_DRAINED = IBV_EVENT_SQ_DRAINED, "send queue drained";
    PATH_MIGRATED = IBV_EVENT_PATH_MIG, "path migrated";
    PATH_NOT_MIGRATED = IBV_EVENT_PATH_MIG_ERR, "path migration failed";
    DEVICE_FATAL = IBV_EVENT_DEVICE_FATAL, "device error";
    PORT_ACTIVE = IBV_EVENT_PORT_ACTIVE, "port active";
    PORT_DOWN = IBV_EVENT_PORT_ERR, "port down";
    LID_CHANGE = IBV_EVENT_LID_CHANGE, "LID changed";
    PKEY_CHANGE = IBV_EVENT_PKEY_CHANGE, "partition keys changed";
    SUBNET_MANAGER_CHANGE = IBV_EVENT_SM_CHANGE, "subnet manager changed";
    SHARED_QUEUE_ERROR = IBV_EVENT_SRQ_ERR, "shared receive queue error";
    SHARED_QUEUE_LIMIT = IBV_EVENT_SRQ_LIMIT_REACHED, "shared receive queue at its limit";
    LAST_REQUEST_REACHED = IBV_EVENT_QP_LAST_WQE_REACHED, "last work request of a queue pair reached";
    CLIENT_REREGISTER = IBV_EVENT_CLIENT_REREGISTER, "clients must register again";
    GID_CHANGE = IBV_EVENT_GID_CHANGE, "GID table changed";
    WORK_QUEUE_FATAL = IBV_EVENT_WQ_FATAL, "work queue error";
}

impl fmt::Display for AsyncEventType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.text() {
            "unknown" => write!(f, "unknown event {}", self.0),
            text => f.write_str(text),
        }
    }
}

/// What it happened to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AsyncElement {
    /// The device.
    Device,
    /// This port of it.
    Port(u8),
    /// The queue pair of this number.
    QueuePair(u32),
    /// A completion queue: its token.
    CompletionQueue(usize),
    /// A shared receive queue, a work queue, or something newer.
    Other,
}

/// An event of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AsyncEvent {
    /// What happened.
    pub kind: AsyncEventType,
    /// What it happened to.
    pub element: AsyncElement,
}

impl AsyncEvent {
    /// # Safety
    ///
    /// The library gave the event, and it is not acknowledged yet.
    pub(crate) unsafe fn new(raw: &ibv_async_event) -> Self {
        let kind = AsyncEventType(raw.event_type);
        let element = match kind {
            AsyncEventType::QUEUE_ERROR => {
                // SAFETY: of this type; the object lives until the event is acknowledged.
                AsyncElement::CompletionQueue(unsafe { (*raw.element.cq).cq_context as usize })
            }
            AsyncEventType::QUEUE_PAIR_FATAL
            | AsyncEventType::QUEUE_PAIR_REQUEST
            | AsyncEventType::QUEUE_PAIR_ACCESS
            | AsyncEventType::ESTABLISHED
            | AsyncEventType::SEND_QUEUE_DRAINED
            | AsyncEventType::PATH_MIGRATED
            | AsyncEventType::PATH_NOT_MIGRATED
            | AsyncEventType::LAST_REQUEST_REACHED => {
                // SAFETY: as above.
                AsyncElement::QueuePair(unsafe { (*raw.element.qp).qp_num })
            }
            AsyncEventType::PORT_ACTIVE
            | AsyncEventType::PORT_DOWN
            | AsyncEventType::LID_CHANGE
            | AsyncEventType::PKEY_CHANGE
            | AsyncEventType::SUBNET_MANAGER_CHANGE
            | AsyncEventType::CLIENT_REREGISTER
            | AsyncEventType::GID_CHANGE => {
                // SAFETY: of this type.
                AsyncElement::Port(unsafe { raw.element.port_num } as u8)
            }
            AsyncEventType::DEVICE_FATAL => AsyncElement::Device,
            _ => AsyncElement::Other,
        };
        Self { kind, element }
    }
}
