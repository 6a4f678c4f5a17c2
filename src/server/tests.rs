//! What a client sees, on real sockets.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time;
use tokio_util::task::TaskTracker;

use super::body::Bounds;
use super::drain::Stage;
use super::frames::PREFACE;
use super::testing::*;
use crate::relay::body::Closed;

mod bodies;
mod bounds;
mod certificates;
mod draining;
mod http2;
mod leaving;
mod requests;
mod slow_clients;
