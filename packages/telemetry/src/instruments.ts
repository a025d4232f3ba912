import type { Attributes, BatchObservableCallback, Counter, Histogram, Observable } from '@opentelemetry/api';
import { type InstrumentDeclaration, type MetricRegistry, metricRegistry } from './metric-registry.ts';
import { meter } from './metrics.ts';

type NamesOf<Kind> = {
  [K in keyof MetricRegistry]: MetricRegistry[K]['kind'] extends Kind ? K : never;
}[keyof MetricRegistry];

export type CounterName = NamesOf<'counter'>;
export type HistogramName = NamesOf<'histogram'>;
export type GaugeName = NamesOf<'gauge'>;

/** The attributes that an instrument may have, by the registry. */
export type AttributesOf<K extends keyof MetricRegistry> = {
  readonly [A in MetricRegistry[K]['attributes'][number]]?: string | number;
};

const counters = new Map<CounterName, Counter>();
const histograms = new Map<HistogramName, Histogram>();

export function count<K extends CounterName>(key: K, by: number, attributes?: AttributesOf<K>): void {
  let counter = counters.get(key);
  if (counter === undefined) {
    const { name, unit, describe }: InstrumentDeclaration = metricRegistry[key];
    counter = meter().createCounter(name, { unit, description: describe });
    counters.set(key, counter);
  }
  counter.add(by, attributes);
}

/** Records a value in the unit of the histogram. */
export function measure<K extends HistogramName>(key: K, value: number, attributes?: AttributesOf<K>): void {
  let histogram = histograms.get(key);
  if (histogram === undefined) {
    const { name, unit, describe, buckets = [] }: InstrumentDeclaration = metricRegistry[key];
    const advice = { explicitBucketBoundaries: [...buckets] };
    histogram = meter().createHistogram(name, { unit, description: describe, advice });
    histograms.set(key, histogram);
  }
  histogram.record(value, attributes);
}

export type Observe = <K extends GaugeName | CounterName>(key: K, value: number, attributes?: AttributesOf<K>) => void;

/**
 * Asks `read` for the values of these instruments at each export: gauges, and counters that are counted elsewhere. It may only tell what it
 * has at hand. Returns how to stop that.
 */
export function report(keys: readonly (GaugeName | CounterName)[], read: (observe: Observe) => void): () => void {
  const observables = new Map<string, Observable>();
  for (const key of keys) {
    const { name, kind, unit, describe }: InstrumentDeclaration = metricRegistry[key];
    const options = { unit, description: describe };
    observables.set(
      key,
      kind === 'counter'
        ? meter().createObservableCounter(name, options)
        : meter().createObservableGauge(name, options),
    );
  }
  const callback: BatchObservableCallback = (result) =>
    read((key, value, attributes) => {
      const observable = observables.get(key);
      if (observable) result.observe(observable, value, attributes as Attributes | undefined);
    });
  const all = [...observables.values()];
  meter().addBatchObservableCallback(callback, all);
  return () => meter().removeBatchObservableCallback(callback, all);
}
