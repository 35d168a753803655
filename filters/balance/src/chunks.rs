//! A long list in pieces: it grows by one piece at a time, needs no room in one piece, and gives
//! back pieces that the next one takes.

/// Items of a piece.
const PIECE: usize = 1 << 14;

/// A list that is made to its length before it is written.
#[derive(Clone, Debug)]
pub(crate) struct Chunks<T> {
    pieces: Vec<Box<[T]>>,
    len: usize,
}

impl<T> Default for Chunks<T> {
    fn default() -> Self {
        Self { pieces: Vec::new(), len: 0 }
    }
}

impl<T: Copy> Chunks<T> {
    /// Adds a piece on the way to `len`; returns how many items are still missing.
    pub(crate) fn grow(&mut self, len: usize, fill: T) -> usize {
        let missing = len.saturating_sub(self.len);
        let piece = missing.min(PIECE);
        if piece > 0 {
            self.pieces.push(vec![fill; piece].into_boxed_slice());
            self.len += piece;
        }
        missing - piece
    }

    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    #[inline]
    pub(crate) fn get(&self, at: usize) -> Option<T> {
        self.pieces.get(at / PIECE)?.get(at % PIECE).copied()
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, at: usize) -> Option<&mut T> {
        self.pieces.get_mut(at / PIECE)?.get_mut(at % PIECE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_grows_by_pieces_to_its_length_and_no_further() {
        let mut list = Chunks::default();
        assert_eq!(list.grow(PIECE + 3, 7_u16), 3);
        assert_eq!(list.grow(PIECE + 3, 7), 0);
        assert_eq!(list.grow(PIECE + 3, 7), 0);
        assert_eq!(
            (list.len(), list.get(PIECE + 2), list.get(PIECE + 3)),
            (PIECE + 3, Some(7), None)
        );
        *list.get_mut(PIECE + 1).unwrap() = 9;
        assert_eq!((list.get(PIECE), list.get(PIECE + 1)), (Some(7), Some(9)));
    }
}
