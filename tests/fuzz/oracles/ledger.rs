//! An entry of the ledger out of a store: what is none is nothing, and what is one keeps its answer.

use bytes::Bytes;
use fanfold::ledger::reread;

pub fn hold(data: &[u8]) {
    let value = Bytes::copy_from_slice(data);
    let Some((written, answer)) = reread(&value) else { return };
    let line = data.iter().position(|byte| *byte == b'\n').expect("it has a line");
    let kept = written.iter().position(|byte| *byte == b'\n').expect("it has a line");
    assert_eq!(written[kept..], data[line..], "the answer's body is as it was");
    let (again, same) = reread(&written).expect("what was written can be read");
    assert_eq!(again, written);
    match (answer, same) {
        (Some(one), Some(two)) => {
            assert_eq!((one.status, one.headers, one.body), (two.status, two.headers, two.body));
        }
        (None, None) => {}
        (one, two) => panic!("an answer came or went: {one:?} {two:?}"),
    }
}
