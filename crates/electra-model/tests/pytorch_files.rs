//! PyTorch's `.bin` files, in both forms, against the formula of `golden/make_state_dicts.py`.

use std::path::PathBuf;

use electra_model::files::{Dtype, TensorFile};

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name)
}

fn read(file: &TensorFile, name: &str) -> (Vec<usize>, Vec<f32>) {
    let shape = file
        .shape(name)
        .unwrap_or_else(|| panic!("no {name}"))
        .to_vec();
    let mut values = vec![f32::NAN; shape.iter().product()];
    file.read_f32(name, &mut values).unwrap();
    (shape, values)
}

fn ramp(indices: impl IntoIterator<Item = usize>) -> Vec<f32> {
    indices
        .into_iter()
        .map(|i| (i as f32 - 4.0) / 8.0)
        .collect()
}

fn check(file: &TensorFile) {
    assert_eq!(read(file, "plain"), (vec![3, 4], ramp(0..12)));
    let transposed = [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11];
    assert_eq!(read(file, "transposed"), (vec![4, 3], ramp(transposed)));
    assert_eq!(read(file, "column"), (vec![3], ramp([1, 5, 9])));
    assert_eq!(read(file, "rows_from_1"), (vec![2, 4], ramp(4..12)));
    assert_eq!(read(file, "tied_a"), (vec![2, 3], ramp(0..6)));
    assert_eq!(read(file, "tied_b"), read(file, "tied_a"));
    assert_eq!(read(file, "parameter"), (vec![2], ramp(0..2)));
    for (name, dtype) in [
        ("half", Dtype::F16),
        ("bfloat", Dtype::Bf16),
        ("double", Dtype::F64),
    ] {
        assert_eq!(file.dtype(name), Some(dtype));
        assert_eq!(read(file, name), (vec![5], ramp(0..5)));
    }
    assert_eq!(
        read(file, "position_ids"),
        (vec![1, 4], vec![0.0, 1.0, 2.0, 3.0])
    );
    assert_eq!(read(file, "bytes"), (vec![4], vec![0.0, 1.0, 2.0, 3.0]));
    assert_eq!(read(file, "flags"), (vec![2], vec![1.0, 0.0]));
    assert_eq!(read(file, "scalar"), (vec![], vec![0.5]));
    assert_eq!(read(file, "empty"), (vec![0, 4], vec![]));
    assert_eq!(file.names().count(), 15);
}

#[test]
fn the_zip_form_is_read() {
    check(&TensorFile::open(golden("zip.bin")).unwrap());
}

#[test]
fn the_form_before_pytorch_1_6_is_read() {
    check(&TensorFile::open(golden("legacy.bin")).unwrap());
}

#[test]
fn a_state_dict_inside_a_training_checkpoint_is_found() {
    check(&TensorFile::open(golden("nested.bin")).unwrap());
}

#[test]
fn a_pickle_that_would_run_something_is_refused_by_name() {
    let message = TensorFile::open(golden("executes.bin"))
        .unwrap_err()
        .to_string();
    assert!(message.contains("executes.bin cannot be used"), "{message}");
    assert!(
        message.contains("posix.system") && message.contains("nothing of it was run"),
        "{message}"
    );
}

#[test]
fn a_whole_pickled_module_is_refused_with_what_to_do() {
    let message = TensorFile::open(golden("module.bin"))
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("torch.nn.modules") && message.contains("save_pretrained"),
        "{message}"
    );
}

#[test]
fn a_file_cut_anywhere_is_an_error_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    for form in ["zip.bin", "legacy.bin"] {
        let whole = std::fs::read(golden(form)).unwrap();
        for length in (0..whole.len()).step_by(5) {
            let path = dir.path().join("cut.bin");
            std::fs::write(&path, &whole[..length]).unwrap();
            let message = TensorFile::open(&path).unwrap_err().to_string();
            assert!(message.contains("cut.bin"), "{length} of {form}: {message}");
        }
    }
}

#[test]
fn a_flipped_byte_is_an_error_or_other_numbers_and_never_a_panic() {
    let dir = tempfile::tempdir().unwrap();
    for form in ["zip.bin", "legacy.bin"] {
        let whole = std::fs::read(golden(form)).unwrap();
        let path = dir.path().join("flipped.bin");
        for at in (0..whole.len()).step_by(3) {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x55;
            std::fs::write(&path, &bytes).unwrap();
            let Ok(file) = TensorFile::open(&path) else {
                continue;
            };
            for name in file.names() {
                let elements = file.elements(name).unwrap();
                assert!(elements <= whole.len(), "{name} claims {elements} elements");
                file.read_f32(name, &mut vec![0.0; elements]).unwrap();
            }
        }
    }
}
