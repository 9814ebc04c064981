//! Values of GGUF metadata, arrays kept compact: a vocabulary is one vector, not a hundred thousand enums.

use crate::error::quoted;

/// A metadata value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// 8-bit unsigned.
    U8(u8),
    /// 8-bit signed.
    I8(i8),
    /// 16-bit unsigned.
    U16(u16),
    /// 16-bit signed.
    I16(i16),
    /// 32-bit unsigned.
    U32(u32),
    /// 32-bit signed.
    I32(i32),
    /// 64-bit unsigned.
    U64(u64),
    /// 64-bit signed.
    I64(i64),
    /// 32-bit float.
    F32(f32),
    /// 64-bit float.
    F64(f64),
    /// Truth value.
    Bool(bool),
    /// UTF-8 text.
    String(String),
    /// Values of one type.
    Array(Array),
}

/// An array of one type. Arrays of arrays, which no known key has, are refused when a file is read.
#[derive(Debug, Clone, PartialEq)]
pub enum Array {
    /// 8-bit unsigned.
    U8(Vec<u8>),
    /// 8-bit signed.
    I8(Vec<i8>),
    /// 16-bit unsigned.
    U16(Vec<u16>),
    /// 16-bit signed.
    I16(Vec<i16>),
    /// 32-bit unsigned.
    U32(Vec<u32>),
    /// 32-bit signed.
    I32(Vec<i32>),
    /// 64-bit unsigned.
    U64(Vec<u64>),
    /// 64-bit signed.
    I64(Vec<i64>),
    /// 32-bit float.
    F32(Vec<f32>),
    /// 64-bit float.
    F64(Vec<f64>),
    /// Truth values.
    Bool(Vec<bool>),
    /// UTF-8 texts.
    String(Vec<String>),
}

impl Value {
    /// A whole number of any integer type, unless negative.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Self::U8(n) => Some(n.into()),
            Self::U16(n) => Some(n.into()),
            Self::U32(n) => Some(n.into()),
            Self::U64(n) => Some(n),
            Self::I8(n) => n.try_into().ok(),
            Self::I16(n) => n.try_into().ok(),
            Self::I32(n) => n.try_into().ok(),
            Self::I64(n) => n.try_into().ok(),
            _ => None,
        }
    }

    /// A float; a double is rounded.
    pub fn as_f32(&self) -> Option<f32> {
        match *self {
            Self::F32(x) => Some(x),
            Self::F64(x) => Some(x as f32),
            _ => None,
        }
    }

    /// A truth value.
    pub fn as_bool(&self) -> Option<bool> {
        match *self {
            Self::Bool(truth) => Some(truth),
            _ => None,
        }
    }

    /// A string.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            _ => None,
        }
    }

    /// An array.
    pub fn as_array(&self) -> Option<&Array> {
        match self {
            Self::Array(array) => Some(array),
            _ => None,
        }
    }

    /// The value for messages: its type, and the value itself where it is short.
    pub fn describe(&self) -> String {
        match self {
            Self::U8(n) => format!("u8 {n}"),
            Self::I8(n) => format!("i8 {n}"),
            Self::U16(n) => format!("u16 {n}"),
            Self::I16(n) => format!("i16 {n}"),
            Self::U32(n) => format!("u32 {n}"),
            Self::I32(n) => format!("i32 {n}"),
            Self::U64(n) => format!("u64 {n}"),
            Self::I64(n) => format!("i64 {n}"),
            Self::F32(x) => format!("f32 {x}"),
            Self::F64(x) => format!("f64 {x}"),
            Self::Bool(truth) => format!("bool {truth}"),
            Self::String(text) => format!("string {}", quoted(&text.chars().take(60).collect::<String>())),
            Self::Array(array) => format!("a list of {} {}", array.len(), array.type_name()),
        }
    }
}

impl Array {
    /// Number of entries.
    pub fn len(&self) -> usize {
        match self {
            Self::U8(list) => list.len(),
            Self::I8(list) => list.len(),
            Self::U16(list) => list.len(),
            Self::I16(list) => list.len(),
            Self::U32(list) => list.len(),
            Self::I32(list) => list.len(),
            Self::U64(list) => list.len(),
            Self::I64(list) => list.len(),
            Self::F32(list) => list.len(),
            Self::F64(list) => list.len(),
            Self::Bool(list) => list.len(),
            Self::String(list) => list.len(),
        }
    }

    /// Whether there are no entries.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The entries' type.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::U8(_) => "u8",
            Self::I8(_) => "i8",
            Self::U16(_) => "u16",
            Self::I16(_) => "i16",
            Self::U32(_) => "u32",
            Self::I32(_) => "i32",
            Self::U64(_) => "u64",
            Self::I64(_) => "i64",
            Self::F32(_) => "f32",
            Self::F64(_) => "f64",
            Self::Bool(_) => "bool",
            Self::String(_) => "strings",
        }
    }

    /// Floats of either width.
    pub fn to_f32s(&self) -> Option<Vec<f32>> {
        match self {
            Self::F32(list) => Some(list.clone()),
            Self::F64(list) => Some(list.iter().map(|&x| x as f32).collect()),
            _ => None,
        }
    }

    /// Whole numbers of any integer type.
    pub fn to_i64s(&self) -> Option<Vec<i64>> {
        fn widen<T: Copy + Into<i64>>(list: &[T]) -> Option<Vec<i64>> {
            Some(list.iter().map(|&n| n.into()).collect())
        }
        match self {
            Self::U8(list) => widen(list),
            Self::I8(list) => widen(list),
            Self::U16(list) => widen(list),
            Self::I16(list) => widen(list),
            Self::U32(list) => widen(list),
            Self::I32(list) => widen(list),
            Self::I64(list) => widen(list),
            Self::U64(list) => list.iter().map(|&n| n.try_into().ok()).collect(),
            _ => None,
        }
    }
}
