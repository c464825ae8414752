// What a dashboard's JSON has to be, made of the types that Grafana publishes, for TypeScript's compiler.
// They describe what Grafana works with. Where its own files differ, it is said here, and nowhere else.
import type * as grafana from '@grafana/schema';
import type * as stat from '@grafana/schema/dist/esm/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen.js';
import type * as timeseries from '@grafana/schema/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen.js';

// JSON has the text of an enum's member where the types have the member.
type Json<T> = T extends string
  ? `${T}`
  : T extends number | boolean | null | undefined
    ? T
    : T extends Array<infer Item>
      ? Array<Json<Item>>
      : T extends object
        ? { [Key in keyof T]: Json<T[Key]> }
        : T;

type Without<T, Key extends keyof T> = Omit<Json<T>, Key>;

// The first step begins at minus infinity, which JSON writes as null.
type Thresholds = Without<grafana.ThresholdsConfig, 'steps'> & {
  steps: Array<{ color: string; value: number | null }>;
};

// Of the datasource "prometheus", which has no types in this package.
type Target = Json<grafana.DataQuery> & {
  expr: string;
  legendFormat: string;
  editorMode: 'code';
  range: boolean;
  instant: boolean;
};

// Only these are saved for the link of a panel, but the types have those of a dashboard's link.
type PanelLink = Pick<Json<grafana.DashboardLink>, 'title' | 'targetBlank'> & { url: string };

// Options that are not there have their default.
type Visualization<Type extends string, Options, Custom> = Without<
  grafana.Panel,
  'type' | 'options' | 'fieldConfig' | 'targets' | 'links'
> & {
  type: Type;
  options: Partial<Json<Options>>;
  fieldConfig: {
    defaults: Without<grafana.FieldConfig, 'custom' | 'thresholds'> & {
      custom?: Json<Custom>;
      thresholds?: Thresholds;
    };
    overrides: Json<grafana.FieldConfigSource['overrides']>;
  };
  targets: Target[];
  links?: PanelLink[];
};

// The kinds of panels that there are here: another one needs its types imported above.
type Panel =
  | Json<grafana.RowPanel>
  | Visualization<'stat', stat.Options, Record<string, never>>
  | Visualization<'timeseries', timeseries.Options, timeseries.FieldConfig>;

// `definition` is the query again, as the list of variables shows it.
type Variable = Json<grafana.VariableModel> & { definition?: string };

export type Dashboard = Without<grafana.Dashboard, 'panels' | 'templating'> & {
  panels: Panel[];
  templating: { list: Variable[] };
};
