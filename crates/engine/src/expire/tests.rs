//! The rules beside a slow oracle that was written from the documentation, over many random histories; and cases worth
//! a name.

mod cases;
mod oracle;
mod random;
mod wal;
