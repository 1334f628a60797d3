//! Finding pages of zeros, and closing the gaps they leave.

use crate::pages::ChunkPlan;
use crate::sink::frame::FrameRun;

/// Whether all bytes are 0. Two loads decide for nearly every page that is not; for one
/// that is, comparing it with itself, 16 bytes shifted, is a memcmp at the speed of the
/// cache, which needs no unsafe code to be vectorised.
pub(super) fn is_zero(page: &[u8]) -> bool {
    match page.split_first_chunk::<16>() {
        Some((first, rest)) => *first == [0; 16] && *rest == page[..rest.len()],
        None => page.iter().all(|&byte| byte == 0),
    }
}

/// Moves the pages of a chunk together that are to be stored, and lists its runs: stored
/// ones and, when its class lets them go, ones of zeros. Answers the bytes that stay, in
/// front of `bytes`, which holds the pages of `plan`.
pub(super) fn pack(
    plan: &ChunkPlan,
    page_size: usize,
    bytes: &mut [u8],
    runs: &mut Vec<FrameRun>,
) -> usize {
    runs.clear();
    let (mut from, mut kept) = (0, 0);
    for run in &plan.runs {
        let end = from + run.len_bytes as usize;
        let mut address = run.addr.0;
        while from < end {
            let zero = plan.class.elide_zero && is_zero(&bytes[from..from + page_size]);
            let len = if plan.class.elide_zero {
                alike(&bytes[from..end], page_size, zero)
            } else {
                end - from
            };
            // A run is at most a chunk long, which fits many times.
            runs.push(FrameRun {
                address,
                n_pages: (len / page_size) as u32,
                zero,
            });
            if !zero {
                if from != kept {
                    bytes.copy_within(from..from + len, kept);
                }
                kept += len;
            }
            from += len;
            address += len as u64;
        }
    }
    kept
}

/// Length of the pages at the front that are all zero, or all not.
fn alike(bytes: &[u8], page_size: usize, zero: bool) -> usize {
    let differs = |page: &[u8]| is_zero(page) != zero;
    let n_pages = bytes.chunks_exact(page_size).skip(1).position(differs);
    n_pages.map_or(bytes.len(), |n| (n + 1) * page_size)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::pages::{ChunkClass, PageRun, RemoteAddr};

    const PAGE: usize = 4096;

    fn plan(elide_zero: bool, runs: &[(u64, u64)]) -> ChunkPlan {
        let class = ChunkClass {
            through_proc_mem: false,
            elide_zero,
            huge: false,
        };
        let run = |&(page, n): &(u64, u64)| PageRun {
            addr: RemoteAddr(page * 4096),
            len_bytes: n * 4096,
        };
        ChunkPlan {
            class,
            runs: runs.iter().map(run).collect(),
        }
    }

    fn pages(values: &[u8]) -> Vec<u8> {
        values.iter().flat_map(|&value| vec![value; PAGE]).collect()
    }

    #[test]
    fn one_byte_anywhere_is_seen() {
        let mut page = vec![0u8; PAGE];
        assert!(is_zero(&page));
        for at in 0..PAGE {
            page[at] = 1;
            assert!(!is_zero(&page), "{at}");
            page[at] = 0;
        }
        assert!(is_zero(&[]) && is_zero(&[0; 3]) && !is_zero(&[0, 1]));
    }

    #[test]
    fn zeros_go_and_the_rest_moves_up() {
        let mut bytes = pages(&[1, 0, 0, 2, 3, 0, 0, 4]);
        let mut runs = Vec::new();
        let kept = pack(
            &plan(true, &[(10, 6), (20, 2)]),
            PAGE,
            &mut bytes,
            &mut runs,
        );
        assert_eq!(bytes[..kept], pages(&[1, 2, 3, 4]));
        let listed: Vec<_> = runs
            .iter()
            .map(|run| (run.address / 4096, run.n_pages, run.zero))
            .collect();
        assert_eq!(
            listed,
            [
                (10, 1, false),
                (11, 2, true),
                (13, 2, false),
                (15, 1, true),
                (20, 1, true),
                (21, 1, false)
            ]
        );
    }

    #[test]
    fn nothing_goes_where_zeros_would_not_read_as_zeros() {
        let mut bytes = pages(&[0, 0, 1]);
        let mut runs = Vec::new();
        assert_eq!(
            pack(&plan(false, &[(1, 3)]), PAGE, &mut bytes, &mut runs),
            3 * PAGE
        );
        assert_eq!(
            runs,
            [FrameRun {
                address: 4096,
                n_pages: 3,
                zero: false
            }]
        );
        let mut zeros = pages(&[0, 0]);
        assert_eq!(pack(&plan(true, &[(1, 2)]), PAGE, &mut zeros, &mut runs), 0);
        assert_eq!(
            runs,
            [FrameRun {
                address: 4096,
                n_pages: 2,
                zero: true
            }]
        );
    }
}
