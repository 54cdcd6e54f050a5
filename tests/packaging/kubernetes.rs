//! The manifest for Kubernetes and the image.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use dmtrace_tests::harness::test;
use libtest_mimic::Trial;
use saphyr::Yaml;

use crate::{known_options, text, unit, yaml};

const MANIFEST: &str = "packaging/kubernetes.yaml";

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        test("kubernetes::no_more_rights_than_the_unit_has", &[], rights),
        test("kubernetes::volumes_and_ports_fit", &[], fits),
        test("kubernetes::its_options_exist", &[], options),
        test("kubernetes::the_image_has_what_is_started", &[], image),
    ]
}

/// The DaemonSet's pod goes to a function.
fn with_pod(check: impl FnOnce(&Yaml<'_>, &Yaml<'_>) -> Result<()>) -> Result<()> {
    let text = text(MANIFEST)?;
    let documents = yaml(&text)?;
    let kinds: Vec<_> = documents.iter().map(|it| it["kind"].as_str()).collect();
    ensure!(kinds == [Some("Namespace"), Some("DaemonSet")], "{kinds:?}");
    let pod = &documents[1]["spec"]["template"]["spec"];
    let containers = pod["containers"].as_vec().context("containers")?;
    ensure!(containers.len() == 1, "{} containers", containers.len());
    check(pod, &containers[0])
}

fn words(list: &Yaml<'_>) -> Result<Vec<String>> {
    let list = list.as_vec().context("no list")?;
    let words = list.iter().map(|word| word.as_str().map(str::to_owned));
    words.collect::<Option<_>>().context("no word")
}

fn rights() -> Result<()> {
    with_pod(|pod, container| {
        let security = &container["securityContext"];
        ensure!(security["privileged"].as_bool() == Some(false));
        ensure!(security["allowPrivilegeEscalation"].as_bool() == Some(false));
        ensure!(security["readOnlyRootFilesystem"].as_bool() == Some(true));
        ensure!(words(&security["capabilities"]["drop"])? == ["ALL"]);
        let added = words(&security["capabilities"]["add"])?.into_iter();
        let added: BTreeSet<_> = added.map(|name| format!("CAP_{name}")).collect();
        let of_unit = unit::setting("CapabilityBoundingSet")?;
        ensure!(added == of_unit, "{added:?} is not {of_unit:?}");
        ensure!(pod["hostPID"].as_bool() == Some(true));
        for (right, what) in [("hostIPC", "IPC namespace"), ("hostNetwork", "network")] {
            ensure!(pod.as_mapping_get(right).is_none(), "the host's {what}");
        }
        ensure!(pod["automountServiceAccountToken"].as_bool() == Some(false));
        Ok(())
    })
}

fn fits() -> Result<()> {
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
        let listens = words(&container["args"])?;
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

fn options() -> Result<()> {
    with_pod(|_, container| {
        let args = words(&container["args"])?;
        ensure!(args[0] == "serve", "{args:?}");
        known_options(&args)
    })
}

fn image() -> Result<()> {
    let file = text("packaging/Dockerfile")?;
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
    let manifest = text(MANIFEST)?;
    ensure!(
        manifest.contains(&version),
        "the manifest is not of {version}"
    );
    Ok(())
}
