//! safetensors, single and sharded: what is written is read again, and bad files are named.

use std::path::Path;

use electra_model::files::{NamedTensor, TensorFile, write_safetensors};

fn tensor<'a>(name: &'a str, shape: &'a [usize], values: &'a [f32]) -> NamedTensor<'a> {
    NamedTensor {
        name,
        shape,
        values,
    }
}

fn complaint(path: &Path) -> String {
    let message = TensorFile::open(path).unwrap_err().to_string();
    assert!(message.contains(&path.display().to_string()), "{message}");
    message
}

#[test]
fn what_is_written_is_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let values: Vec<f32> = (0..100_000).map(|i| i as f32 * 0.1).collect();
    let written = [
        tensor("b", &[100, 1000], &values),
        tensor("a", &[2], &[1.0, -0.0]),
    ];
    write_safetensors(&path, written).unwrap();
    let file = TensorFile::open(&path).unwrap();
    assert_eq!(file.names().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(file.shape("b"), Some(&[100, 1000][..]));
    let mut read = vec![0.0; 100_000];
    file.read_finite("b", &mut read).unwrap();
    assert_eq!(read, values);
    let bytes = std::fs::read(&path).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    assert_eq!(header % 8, 0);
    assert!(bytes[8..].starts_with(br#"{"__metadata__":{"format":"pt"},"#));
}

#[test]
fn a_name_written_twice_or_a_wrong_shape_is_refused_and_leaves_the_old_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    write_safetensors(&path, [tensor("a", &[1], &[7.0])]).unwrap();
    let twice = write_safetensors(
        &path,
        [tensor("a", &[1], &[1.0]), tensor("a", &[1], &[1.0])],
    );
    assert!(twice.unwrap_err().to_string().contains("tensor a twice"));
    assert!(write_safetensors(&path, [tensor("a", &[3], &[1.0])]).is_err());
    let mut old = [0.0];
    TensorFile::open(&path)
        .unwrap()
        .read_f32("a", &mut old)
        .unwrap();
    assert_eq!(old, [7.0]);
}

#[test]
fn a_truncated_file_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    write_safetensors(&path, [tensor("a", &[64], &[1.0; 64])]).unwrap();
    let whole = std::fs::read(&path).unwrap();
    for length in 0..whole.len() {
        std::fs::write(&path, &whole[..length]).unwrap();
        let message = complaint(&path);
        if length > 8 {
            assert!(
                message.contains("is damaged") && message.contains("download it again"),
                "{message}"
            );
        }
    }
}

#[test]
fn garbage_is_not_taken_for_weights() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    std::fs::write(&path, b"<html>404 Not Found, and some more text</html>").unwrap();
    assert!(complaint(&path).contains("neither a safetensors file nor a PyTorch checkpoint"));
    std::fs::write(&path, b"").unwrap();
    assert!(complaint(&path).contains("is empty"));
    std::fs::write(
        &path,
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
    )
    .unwrap();
    assert!(complaint(&path).contains("git lfs pull"));
    assert!(complaint(dir.path()).contains("folder"));
    assert!(complaint(&dir.path().join("absent")).contains("cannot read"));
}

#[test]
fn a_header_that_claims_huge_sizes_costs_no_memory() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let huge = r#"{"a":{"dtype":"F32","shape":[1099511627776,4096],"data_offsets":[0,18014398509481984]}}"#;
    let overflowing = r#"{"a":{"dtype":"F32","shape":[18446744073709551615,18446744073709551615],"data_offsets":[0,4]}}"#;
    for header in [huge, overflowing] {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(&[0; 4]);
        std::fs::write(&path, &bytes).unwrap();
        assert!(complaint(&path).contains("is damaged"));
    }
    let mut bytes = u64::MAX.to_le_bytes().to_vec();
    bytes.extend_from_slice(b"{}");
    std::fs::write(&path, &bytes).unwrap();
    assert!(complaint(&path).contains("is damaged"));
}

#[test]
fn a_nan_is_named_with_its_tensor_and_place() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    write_safetensors(
        &path,
        [tensor(
            "layer.weight",
            &[2, 2],
            &[0.0, 1.0, f32::NAN, f32::INFINITY],
        )],
    )
    .unwrap();
    let file = TensorFile::open(&path).unwrap();
    let message = file
        .read_finite("layer.weight", &mut [0.0; 4])
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("tensor layer.weight holds NaN at element 2"),
        "{message}"
    );
}

#[test]
fn shards_are_read_as_one_file() {
    let dir = tempfile::tempdir().unwrap();
    write_safetensors(
        &dir.path().join("one.safetensors"),
        [tensor("a", &[1], &[1.0])],
    )
    .unwrap();
    write_safetensors(
        &dir.path().join("two.safetensors"),
        [tensor("b", &[1], &[2.0])],
    )
    .unwrap();
    let index = dir.path().join("model.safetensors.index.json");
    let write = |map: &str| {
        std::fs::write(&index, format!(r#"{{"metadata":{{}},"weight_map":{map}}}"#)).unwrap()
    };

    write(r#"{"a":"one.safetensors","b":"two.safetensors"}"#);
    let file = TensorFile::open(&index).unwrap();
    let mut b = [0.0];
    file.read_f32("b", &mut b).unwrap();
    assert_eq!((file.names().count(), b), (2, [2.0]));

    write(r#"{"a":"one.safetensors","c":"two.safetensors"}"#);
    assert!(complaint(&index).contains("its shards lack tensor c"));
    write(r#"{"a":"../one.safetensors"}"#);
    assert!(complaint(&index).contains("is no name of a shard"));
    write(r#"{"a":"three.safetensors"}"#);
    assert!(
        TensorFile::open(&index)
            .unwrap_err()
            .to_string()
            .contains("three.safetensors")
    );
}
