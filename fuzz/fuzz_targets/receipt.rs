//! Receipts: any file that can be parsed has digests that its root covers, and prints and parses
//! back to the same receipt.
#![no_main]

use libfuzzer_sys::fuzz_target;
use openhosting::receipt::Receipt;

fuzz_target!(|data: &[u8]| {
    if let Ok(receipt) = Receipt::parse(data) {
        let blocks = receipt.content.block_plan().count();
        assert_eq!(receipt.content.block(blocks), None);
        for block in [0, blocks / 2, blocks.saturating_sub(1)] {
            assert_eq!(receipt.content.block(block).is_some(), block < blocks);
        }
        assert!(receipt.content.differing(&receipt.content).is_empty());
        assert!((0.0..=1.0).contains(&receipt.verified.confidence(blocks / 2)));
        assert!(!receipt.verified.statement().is_empty());
        let again = Receipt::parse(receipt.print().as_bytes()).expect("what was printed");
        assert_eq!(again.content.root(), receipt.content.root());
        assert_eq!((again.drive, again.how), (receipt.drive, receipt.how));
    }
});
