//! Parameters for inference: weights are packed as they are read, and their values are not kept.

use super::Cpu;
use super::buffer::Buffer;
use super::params::CpuParams;
use crate::params::{ParamLayout, ParamView};
use std::ops::Range;

/// Elements of weights that are read before they are packed, unless one weight has more: enough
/// that many threads have work, few enough to stay near.
const STAGED: usize = 4 << 20;

/// A range of a layout on its way into parameters for inference.
#[derive(Clone, Debug)]
struct Segment {
    range: Range<usize>,
    /// What is kept packed alone; none for values that stay as they are.
    weight: Option<ParamView>,
}

/// The whole layout in order, in groups that are read at once. Values that stay as they are come by
/// themselves where there are many.
fn groups(layout: &ParamLayout, weights: &[ParamView]) -> Vec<Vec<Segment>> {
    let mut segments = Vec::new();
    let mut at = 0;
    let stay = |range: Range<usize>, segments: &mut Vec<Segment>| {
        if !range.is_empty() {
            let weight = None;
            segments.push(Segment { range, weight });
        }
    };
    for &view in weights {
        stay(at..view.offset, &mut segments);
        at = view.range().end;
        segments.push(Segment {
            range: view.range(),
            weight: Some(view),
        });
    }
    stay(at..layout.len(), &mut segments);
    let mut groups: Vec<Vec<Segment>> = Vec::new();
    let (mut room, mut alone) = (0, true);
    for segment in segments {
        let len = segment.range.len();
        let large = segment.weight.is_none() && len > STAGED / 8;
        match groups.last_mut() {
            Some(group) if len <= room && !large && !alone => {
                room -= len;
                group.push(segment);
            }
            _ => {
                room = STAGED.saturating_sub(len);
                groups.push(vec![segment]);
            }
        }
        alone = large;
    }
    groups
}

impl Cpu {
    /// Parameters for inference: a group of tensors after the other is read and packed, so that the
    /// values of weights never take more memory than one group's.
    pub(super) fn load_params<E>(
        &mut self,
        layout: &ParamLayout,
        mut fill: impl FnMut(Range<usize>, &mut [f32]) -> Result<(), E>,
    ) -> Result<CpuParams, E> {
        let mut weights: Vec<ParamView> = layout.only_multiplied().collect();
        weights.sort_by_key(|view| view.offset);
        let mut params = CpuParams::empty(layout, self.form, &weights);
        let mut staged = Buffer::zeroed(0);
        for group in groups(layout, &weights) {
            let all = group[0].range.start..group[group.len() - 1].range.end;
            if let [Segment { weight: None, .. }] = &group[..] {
                fill(all.clone(), params.kept_mut(all))?;
                continue;
            }
            staged.reserve(all.len());
            let staged = &mut staged.as_mut_slice()[..all.len()];
            fill(all.clone(), staged)?;
            for Segment { range, weight } in group {
                let values = &staged[range.start - all.start..range.end - all.start];
                if let Some(view) = weight {
                    self.pack_for_inference(&params, view, values);
                } else {
                    params.kept_mut(range).copy_from_slice(values);
                }
            }
        }
        Ok(params)
    }
}

#[cfg(test)]
mod tests {
    use super::super::CpuOptions;
    use super::*;
    use crate::backend::{Backend, Linear};
    use crate::params::Init;

    /// Two weights that are not read at once, and between them a table that is multiplied with.
    #[test]
    fn weights_for_inference_are_kept_packed_alone_and_give_the_same_bits() {
        let mut layout = ParamLayout::new();
        let mut linear = |name: &str, shape: [usize; 2]| {
            let weight = layout.push(name, &shape, Init::Zeros, 0);
            layout.register_layer_linear(weight);
            let bias = layout.push(&format!("{name} bias"), &shape[..1], Init::Zeros, 0);
            Linear { weight, bias }
        };
        let first = linear("first", [2051, 1100]);
        let table = linear("table", [6000, 96]);
        let last = linear("last", [2050, 1100]);
        let small = linear("small", [70, 96]);
        layout.register_table(table.weight);
        let value = |i: usize| (i as f32 * 0.37).sin();
        let values: Vec<f32> = (0..layout.len()).map(value).collect();
        let weights = [first.weight, last.weight, small.weight];
        let groups = groups(&layout, &weights);
        assert_eq!(groups.iter().map(Vec::len).collect::<Vec<_>>(), [1, 1, 4]);

        let mut cpu = Cpu::new(CpuOptions::default()).expect("the best instruction set");
        let mut at = 0;
        let read = |range: Range<usize>, out: &mut [f32]| {
            assert_eq!(range.start, at);
            at = range.end;
            out.copy_from_slice(&values[range]);
            Ok::<(), std::convert::Infallible>(())
        };
        let Ok(loaded) = cpu.inference_params(&layout, read);
        assert_eq!(at, layout.len());
        let kept = layout.len() - weights.iter().map(ParamView::len).sum::<usize>();
        assert_eq!(loaded.kept_len(), kept);
        let params = cpu.params(&layout, &values);
        for linear in [first, table, last, small] {
            let x = cpu.array(3, linear.weight.cols);
            let input: Vec<f32> = (0..3 * x.cols).map(value).collect();
            cpu.write(x, &input);
            let mut product = |params: &CpuParams| {
                let y = cpu.array(3, linear.weight.rows);
                cpu.linear(params, x, &linear, y);
                let mut out = vec![0.0; 3 * y.cols];
                cpu.read(y, &mut out);
                out
            };
            assert_eq!(product(&loaded), product(&params));
        }
        assert_eq!(loaded.slice(table.weight), &values[table.weight.range()]);
        assert_eq!(loaded.slice(small.bias), &values[small.bias.range()]);
    }

    #[test]
    #[should_panic(expected = "only what products read")]
    fn values_that_were_left_out_are_not_read() {
        let mut layout = ParamLayout::new();
        let weight = layout.push("weight", &[4, 4], Init::Zeros, 0);
        layout.register_linear(weight);
        let mut cpu = Cpu::new(CpuOptions::default()).expect("the best instruction set");
        let read = |_: Range<usize>, _: &mut [f32]| Ok::<(), std::convert::Infallible>(());
        let Ok(loaded) = cpu.inference_params(&layout, read);
        loaded.slice(weight);
    }
}
