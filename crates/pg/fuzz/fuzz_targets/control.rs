//! `pg_control`: also with a right CRC, so that the fields are reached.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pgark_pg::ControlFile;

fuzz_target!(|data: &[u8]| {
    let _ = ControlFile::parse(data);
    let mut bytes = data.to_vec();
    bytes.resize(8192, 0);
    for (control, catalog, crc_at) in [(1300u32, 202_209_061u32, 288), (1800, 202_506_291, 292)] {
        bytes[8..12].copy_from_slice(&control.to_le_bytes());
        bytes[12..16].copy_from_slice(&catalog.to_le_bytes());
        // Poisoning computes the CRC, but refuses input whose CRC is wrong: so find the right one from the error.
        if let Err(pgark_pg::ControlError::Checksum { expected, .. }) = ControlFile::parse(&bytes) {
            bytes[crc_at..crc_at + 4].copy_from_slice(&expected.to_le_bytes());
        }
        if ControlFile::parse(&bytes).is_ok() {
            let poisoned = ControlFile::poison(&bytes).expect("what parses can be poisoned");
            assert!(ControlFile::parse(&poisoned).expect("and parses again").is_poisoned());
        }
    }
});
