//! The manifest for Kubernetes and the image.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use dmtrace_tests::harness::new_trial;
use libtest_mimic::Trial;
use saphyr::Yaml;

use crate::{known_options, parse_yaml, read_file, unit};

const MANIFEST: &str = "packaging/kubernetes.yaml";

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        new_trial(
            "kubernetes::no_more_rights_than_the_unit_has",
            &[],
            no_more_rights_than_the_unit_has,
        ),
        new_trial(
            "kubernetes::volumes_and_ports_fit",
            &[],
            volumes_and_ports_fit,
        ),
        new_trial("kubernetes::its_options_exist", &[], its_options_exist),
        new_trial(
            "kubernetes::the_image_has_what_is_started",
            &[],
            the_image_has_what_is_started,
        ),
    ]
}

/// The DaemonSet's pod goes to a function.
fn with_pod(check: impl FnOnce(&Yaml<'_>, &Yaml<'_>) -> Result<()>) -> Result<()> {
    let text = read_file(MANIFEST)?;
    let documents = parse_yaml(&text)?;
    let kinds: Vec<_> = documents.iter().map(|it| it["kind"].as_str()).collect();
    ensure!(kinds == [Some("Namespace"), Some("DaemonSet")], "{kinds:?}");
    let pod = &documents[1]["spec"]["template"]["spec"];
    let containers = pod["containers"].as_vec().context("containers")?;
    ensure!(containers.len() == 1, "{} containers", containers.len());
    check(pod, &containers[0])
}

fn list_words(list: &Yaml<'_>) -> Result<Vec<String>> {
    let list = list.as_vec().context("no list")?;
    let words = list.iter().map(|word| word.as_str().map(str::to_owned));
    words.collect::<Option<_>>().context("no word")
}

fn no_more_rights_than_the_unit_has() -> Result<()> {
    with_pod(|pod, container| {
        let security = &container["securityContext"];
        ensure!(security["privileged"].as_bool() == Some(false));
        ensure!(security["allowPrivilegeEscalation"].as_bool() == Some(false));
        ensure!(security["readOnlyRootFilesystem"].as_bool() == Some(true));
        ensure!(list_words(&security["capabilities"]["drop"])? == ["ALL"]);
        let added = list_words(&security["capabilities"]["add"])?.into_iter();
        let added: BTreeSet<_> = added.map(|name| format!("CAP_{name}")).collect();
        let of_unit = unit::unit_setting("CapabilityBoundingSet")?;
        ensure!(added == of_unit, "{added:?} is not {of_unit:?}");
        ensure!(pod["hostPID"].as_bool() == Some(true));
        for (right, what) in [("hostIPC", "IPC namespace"), ("hostNetwork", "network")] {
            ensure!(pod.as_mapping_get(right).is_none(), "the host's {what}");
        }
        ensure!(pod["automountServiceAccountToken"].as_bool() == Some(false));
        Ok(())
    })
}

fn volumes_and_ports_fit() -> Result<()> {
    with_pod(|pod, container| {
        let names = |list: &Yaml<'_>| -> Result<BTreeSet<String>> {
            let list = list.as_vec().context("no list")?;
            let names = list.iter().map(|it| it["name"].as_str().map(str::to_owned));
            names.collect::<Option<_>>().context("no name")
        };
        let mounted = names(&container["volumeMounts"])?;
        let volumes = names(&pod["volumes"])?;
        ensure!(mounted == volumes, "{mounted:?} is not {volumes:?}");
        let port = container["ports"][0]["containerPort"].as_integer();
        let listens = list_words(&container["args"])?;
        let address = listens
            .iter()
            .find_map(|word| word.strip_prefix("--metrics="));
        let own = address
            .context("no address")?
            .rsplit_once(':')
            .context("no port")?;
        ensure!(port == own.1.parse().ok(), "{port:?} is not {own:?}");
        Ok(())
    })
}

fn its_options_exist() -> Result<()> {
    with_pod(|_, container| {
        let args = list_words(&container["args"])?;
        ensure!(args[0] == "serve", "{args:?}");
        known_options(&args)
    })
}

fn the_image_has_what_is_started() -> Result<()> {
    let file = read_file("packaging/Dockerfile")?;
    let lines: Vec<_> = file.lines().filter(|line| !line.starts_with('#')).collect();
    let expected = [
        "FROM scratch",
        "COPY dmtrace /usr/sbin/dmtrace",
        "ENTRYPOINT [\"/usr/sbin/dmtrace\"]",
        "CMD [\"serve\"]",
    ];
    ensure!(lines == expected, "{lines:?}");
    let version = format!("dmtrace:{}", env!("CARGO_PKG_VERSION"));
    ensure!(
        file.contains(&version),
        "the Dockerfile is not of {version}"
    );
    let manifest = read_file(MANIFEST)?;
    ensure!(
        manifest.contains(&version),
        "the manifest is not of {version}"
    );
    Ok(())
}
